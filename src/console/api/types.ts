/** The answers of the API that the console uses. `/openapi.json` describes them in full. */

export type Scope = "read" | "use" | "admin" | "issue";

export interface Caller {
  user: string;
  scopes: readonly Scope[];
  sessionId: string | null;
  expiresAt: string | null;
  limits: LimitNumbers;
  used: LimitNumbers;
}

/** A number for each limit of a user. Null in `limits` means no limit; null in `used` means that nobody counts it. */
export type LimitNumbers = Readonly<Record<LimitName, number | null>>;

export type LimitName =
  | "turnsPerMinute"
  | "concurrentTurns"
  | "sessions"
  | "connections"
  | "tokensPerDay"
  | "tokensPerMonth";

export interface Session {
  id: string;
  owner: string;
  purpose: string | null;
  title: string | null;
  kind: "private" | "collaborative";
  members: readonly string[];
  persistence: "persistent" | "ephemeral";
  state: string;
  model: string | null;
  createdAt: string;
  lastUsedAt: string;
  expiresAt: string | null;
  sizeBytes: number;
  stranded: boolean;
}

export interface SessionPage {
  sessions: readonly Session[];
  next: string | null;
}

/** A permission or a question of the agent. */
export interface AgentRequest {
  id: string;
  kind: "permission" | "question";
  openedAt: string;
  expiresAt: string | null;
  permission: ({ kind: string } & Record<string, unknown>) | null;
  question: { question: string; choices: readonly string[] | null; freeform: boolean } | null;
}

/** An event of a session, with the fields that the console reads. */
export interface SessionEvent {
  id: string;
  type: string;
  timestamp: string;
  agentId?: string;
  // biome-ignore lint/suspicious/noExplicitAny: each type of event has its own fields
  data: any;
}

/** A part of a transcript, with the fields that the console reads. */
export interface TranscriptEntry {
  role: "user" | "assistant" | "tool";
  /** Why the turn ended without a complete reply; null for all other entries. */
  failure: string | null;
}
