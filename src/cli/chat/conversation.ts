import type { CopilotSession, SessionConfig, SessionEvent } from "@github/copilot-sdk";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import type { LeaseWait } from "../../sessions/leases.js";
import { isUnloaded } from "../../sessions/use/load.js";
import type { SessionView } from "../../sessions/view.js";

/** The functions that answer the permission requests and questions of the agent. */
export type Answers = Pick<SessionConfig, "onPermissionRequest" | "onUserInputRequest" | "onElicitationRequest">;

export interface PromptOptions {
  /** Aborts the turn. */
  signal: AbortSignal;
  onEvent: (event: SessionEvent) => void;
  /** Called if the wait for a lease takes longer than a second, and again when the lease or its queue changes. */
  onWait: (wait: LeaseWait) => void;
  /** Called when the chat has lost the connection, before or during the turn, and is about to connect again. */
  onLost: () => void;
  /** Called when the chat has connected again and found the prompt in the history, so the turn has begun. */
  onFound: () => void;
}

/**
 * A session that the chat has open. If the server or the connection has ended, the next call opens the session again.
 * If a signal aborts, the call rejects with the signal's reason, and the session can still be used.
 */
export interface Conversation {
  readonly id: string;
  /** Runs one turn. @throws the errors of `fleet.sessions.send`. */
  send(prompt: string, options: PromptOptions): Promise<void>;
  /** The session as the fleet shows it; null in a chat at a front door, which does not report it. */
  view(): Promise<SessionView | null>;
  /** The model of the next turn; null if the server does not report it. */
  model(signal: AbortSignal): Promise<string | null>;
  /** The models that the user may choose from; empty if the provider does not list them. */
  models(signal: AbortSignal): Promise<string[]>;
  useModel(model: string, signal: AbortSignal): Promise<void>;
  /** Reads the conversation so far. @param turns how many of the latest turns to read (default: all) */
  past(signal: AbortSignal, turns?: number): Promise<TranscriptEntry[]>;
  /** Leaves the session. Its state stays. */
  leave(): Promise<void>;
}

export interface SessionSummary {
  id: string;
  /** Null if it is not known. */
  title: string | null;
  /** ISO 8601 in UTC. */
  lastUsedAt: string;
}

/**
 * The sessions of one user, reached through the local fleet or through a front door. If a signal aborts, the call
 * rejects with the signal's reason, and leaves no new session behind.
 */
export interface Conversations {
  /** Where the sessions are, as the chat shows it: `user alice`, or `front door fleet.example:4300`. */
  readonly place: string;
  /** The user to name in suggestions; undefined at a front door, because only the token identifies the user. */
  readonly user: string | undefined;
  /** Whether the echo model answers. False if the chat cannot find out which model answers. */
  readonly isEcho: boolean;
  create(model: string | undefined, signal: AbortSignal): Promise<Conversation>;
  /** @throws FleetError `FLEET_SESSION_NOT_FOUND`, and the other errors of `fleet.sessions.resume`. */
  resume(id: string, model: string | undefined, signal: AbortSignal): Promise<Conversation>;
  /** The sessions, the most recently used first. */
  list(signal: AbortSignal): Promise<SessionSummary[]>;
  delete(id: string, signal: AbortSignal): Promise<void>;
  /** Returns the warnings since the last call: problems that the fleet worked around. */
  takeWarnings(): string[];
  close(): Promise<void>;
}

/** The session's model; null if the server does not report it. @throws Error if the connection has ended. */
export async function modelOf(session: CopilotSession): Promise<string | null> {
  return (await session.rpc.model.getCurrent()).modelId ?? null;
}

/** The ids of the models that the provider lists. @throws Error if the connection has ended. */
export async function modelsOf(session: CopilotSession): Promise<string[]> {
  const { list } = await session.rpc.model.list();
  return list.flatMap((each) => (typeof each === "object" && each !== null && "id" in each ? [String(each.id)] : []));
}

/** The codes of the errors with which vscode-jsonrpc rejects a request whose connection has ended. */
const UNANSWERED: ReadonlySet<unknown> = new Set([-32_099, -32_098, -32_097, -32_096]);

/**
 * Whether the error means that the server refused a request of the SDK, so that repeating the request cannot help.
 * False if the connection has ended or the server has unloaded the session, because a repetition can help then.
 */
export function isRefusal(error: unknown): boolean {
  if (!(error instanceof Error) || !("code" in error) || isUnloaded(error)) return false;
  return typeof error.code === "number" && error.code < 0 && !UNANSWERED.has(error.code);
}
