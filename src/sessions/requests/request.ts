/**
 * The permission that the agent asks for, with the runtime's fields, such as `fullCommandText` for the kind `shell`.
 */
export type AskedPermission = Readonly<{ kind: string } & Record<string, unknown>>;

export interface AskedQuestion {
  question: string;
  /** The answers that the agent proposes. Null if it proposes none. */
  choices: string[] | null;
  /** Whether an answer may differ from the choices. */
  freeform: boolean;
}

/** Everything that the agent asks: a permission, or a question. */
export type Asked =
  | { permission: AskedPermission; question: null }
  | {
      permission: null;
      question: AskedQuestion;
    };

/**
 * How a request ended. `expired`: nobody answered in time, or the fleet drains. `cancelled`: the turn ended first, for example
 * because it was aborted or its server died.
 */
export type RequestOutcome = (typeof REQUEST_OUTCOMES)[number];

export const REQUEST_OUTCOMES = ["approved", "denied", "answered", "expired", "cancelled"] as const;
export const REQUEST_KINDS = ["permission", "question"] as const;

/** A permission or a question of the agent, which waits for an answer from the user whose turn runs. */
export interface AgentRequest {
  id: string;
  /** The id of the session. */
  session: string;
  /** The user in whose turn the agent asks. Only this user may answer. */
  user: string;
  kind: (typeof REQUEST_KINDS)[number];
  openedAt: string;
  /** If nobody has answered by this time, a permission is denied, and the agent has to continue without an answer. */
  expiresAt: string;
  /** Null in a question. */
  permission: AskedPermission | null;
  /** Null in a permission. */
  question: AskedQuestion | null;
  /** Null while the request waits. */
  outcome: RequestOutcome | null;
}

/** The answer to a request: a decision about a permission, or the answer to a question. */
export interface RequestAnswer {
  decision?: "approve" | "deny" | undefined;
  /** For a denial: the text that the model reads. */
  reason?: string | undefined;
  answer?: string | undefined;
}

export interface RequestChange {
  type: "request.opened" | "request.closed";
  request: AgentRequest;
}

/** How a request ended, with the reason or the answer for the agent. */
export interface Verdict extends Pick<RequestAnswer, "reason" | "answer"> {
  outcome: RequestOutcome;
  /** Whether the runtime already has an answer, because another client answered. */
  isKnown?: boolean;
}
