import { ERRORS, FleetError, type FleetErrorCode, isCommand, isFleetError, option, quote } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import { isSessionId } from "../base/ids.js";
import { type Lease, mayUse, type SessionRecord } from "../base/session.js";
import type { UsageRecorder } from "../base/usage.js";
import { countOf } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import type { ModelProvider } from "../providers/provider.js";
import { reasonOf } from "../runtime/history/turn-tracker.js";
import type { Clients } from "../servers/clients.js";
import type { HostDirectory } from "../servers/directory.js";
import type { Pool } from "../servers/pool.js";
import type { Store } from "../store/store.js";
import type { OnUnreadable } from "../store/table.js";
import type { Leases } from "./leases.js";
import type { AgentRequests } from "./requests.js";
import type { Takeover } from "./takeover.js";

/**
 * The error for an id that a new session cannot have. The text is the same whether the id belongs to somebody else's
 * session or to files without a session, because it must not reveal other users' sessions.
 *
 * @param there the session with this id; null if there is none, or if nobody has looked
 */
export function sessionExists(id: string, user: string, there: SessionRecord | null): FleetError {
  const isTheirs = there !== null && mayUse(there, user);
  return new FleetError("FLEET_SESSION_EXISTS", `The session id ${quote(id)} is taken.`, {
    suggestions: [
      `Choose another ${option("sessionId")}, or leave it out for a new one.`,
      ...(isTheirs ? [`copilotfleet resume ${id} --user USER` as const] : []),
    ],
  });
}

export function sessionChanged(id: string): FleetError {
  return new FleetError("FLEET_SESSION_CHANGED", `Session ${quote(id)} has changed since it was read.`, {
    suggestions: ["Read the session again."],
  });
}

export function sessionNotFound(id: string): FleetError {
  return new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)} for this user.`, {
    suggestions: ["copilotfleet list --user USER # lists the sessions of this user"],
  });
}

/** The error for a session that gc has deleted. Only its owner may get it. */
export class SessionExpired extends FleetError {
  constructor(at: string) {
    super("FLEET_SESSION_NOT_FOUND", `This session expired on ${at} (session.ttl).`, {
      suggestions: ["copilotfleet config get session.ttl # how long unused sessions are kept"],
    });
  }
}

/** @param outcome the results of the call for the other sessions */
export function sessionsNotFound(ids: readonly string[], outcome: Readonly<Record<string, unknown>> = {}): FleetError {
  const subject = `${ids.length === 1 ? "Session" : "Sessions"} ${ids.map(quote).join(", ")}`;
  return new FleetError("FLEET_SESSION_NOT_FOUND", `${subject} not found.`, {
    suggestions: [
      ids.every(isSessionId) ? "copilotfleet list # lists sessions" : "copilotfleet list -q # prints whole ids",
    ],
    outcome,
  });
}

export function sessionLost(record: SessionRecord): FleetError {
  return new FleetError(
    "FLEET_SESSION_LOST",
    `Session ${quote(record.id)} had ${countOf(record.turns, "turn")}, and its history is no longer on disk.`,
    {
      suggestions: [
        "Restore the folder from a backup.",
        `copilotfleet delete ${record.id} # only if there is no backup: this gives the history up`,
      ],
    },
  );
}

/**
 * Throws a fleet error in place of a runtime error whose message does not show how to fix the problem in a fleet.
 * Throws any other error unchanged.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`, `FLEET_MODEL_UNCONFIGURED`; or `error` itself.
 */
export function explained(error: unknown): never {
  const message = error instanceof Error ? error.message : "";
  // Runtimes differ in the ids that they accept. Version 1.0.85 refuses a dot, which the fleet allows.
  const [, id] = /request with invalid sessionId: (.+)$/s.exec(message) ?? [];
  if (id !== undefined) {
    throw new FleetError("FLEET_USAGE_INVALID", `This runtime does not accept the session id ${quote(id)}.`, {
      cause: error,
      suggestions: ["Use letters, digits, _ and - only."],
    });
  }
  if (
    /No GitHub OAuth token or Copilot HMAC key provided|Session was not created with authentication info/i.test(message)
  ) {
    throw modelUnconfigured(error);
  }
  throw error;
}

/** @param cause the error with which a server refused. Undefined if no server was asked. */
export function modelUnconfigured(cause?: unknown): FleetError {
  const message =
    cause === undefined
      ? "Neither a model provider nor a GitHub token is configured."
      : "The server has no GitHub token and no model provider is configured.";
  return new FleetError("FLEET_MODEL_UNCONFIGURED", message, {
    cause,
    suggestions: [
      "copilotfleet init # asks for the models to use, and writes the configuration",
      "COPILOTFLEET_PROVIDER_TYPE=echo copilotfleet create --user USER --prompt hello # needs no account",
    ],
  });
}

/**
 * Warns of each record that a list leaves out, because one damaged record must not make the list fail for everybody.
 */
export function warnOfUnreadable(warn: (message: string) => void): OnUnreadable {
  return (id, { message, suggestions }) => {
    const steps = suggestions.filter(isCommand).join("; ");
    warn(`Session ${quote(id)} is left out, because its record cannot be read. ${message} Next steps: ${steps}`);
  };
}

const STORE_TROUBLE: ReadonlySet<FleetErrorCode> = new Set([
  "FLEET_STATE_UNWRITABLE",
  "FLEET_FILES_EXHAUSTED",
  "FLEET_STATE_BUSY",
  "FLEET_STATE_LOST",
  "FLEET_STORE_UNAVAILABLE",
  "FLEET_STORAGE_UNUSABLE",
]);

/**
 * Whether an operation failed because of the store or the shared storage, for example on a full disk. After an answered
 * turn, such a failure becomes a warning, because the user needs the reply.
 */
export function isStoreTrouble(error: unknown): error is FleetError {
  return isFleetError(error) && STORE_TROUBLE.has(error.code);
}

export function unreleased(id: string, why: string): string {
  return `The lease on session ${quote(id)} could not be released, so it will expire: ${why}`;
}

export function unseen(id: string, why: string): string {
  return `Session ${quote(id)} could not be checked after the turn: ${why}`;
}

export function sessionLocked(id: string, lease: Lease): FleetError {
  return new FleetError(
    "FLEET_SESSION_LOCKED",
    `Session ${quote(id)} is locked by ${quote(lease.holder)} for another ${Math.ceil(lease.remainingMs / 1_000)} s.`,
    { suggestions: [`copilotfleet lock ${id} --show`, "Try again when it is released."] },
  );
}

/** The error for a turn that ended because a command stopped its server. */
export function turnCut(id: string, cause: unknown): FleetError {
  return new FleetError("FLEET_TURN_CUT", `The server of session ${quote(id)} was stopped during the turn.`, {
    cause,
    suggestions: [`copilotfleet send ${id} TEXT --user USER # the history up to the last finished step is kept`],
  });
}

/** The error for a turn that ended because its process or its server was killed. */
export function turnWasCut(id: string): FleetError {
  const message = `The turn in session ${quote(id)} was cut, because its process or its server ended.`;
  return new FleetError("FLEET_SERVER_LOST", message, {
    suggestions: ["Send the prompt again with another key: the history up to the last finished step is kept."],
    retryable: false,
  });
}

/** @param reason the error message in the session's history */
export function recordedFailure(id: string, reason: string): FleetError {
  return new FleetError("FLEET_TURN_FAILED", `The turn failed: ${reasonOf(reason)}`, {
    suggestions: [`copilotfleet send ${id} TEXT --user USER`],
  });
}

/** The error of a turn with an idempotency key, from the turn's record. Each request with the key gets it. */
export function storedEnd({ code, message }: { code: string; message: string }, cause?: unknown): FleetError {
  const known = Object.hasOwn(ERRORS, code) ? (code as FleetErrorCode) : "FLEET_TURN_FAILED";
  return new FleetError(known, message, {
    cause,
    suggestions: ["Send the prompt again with another key."],
    retryable: false,
  });
}

export function historyLacksTurn(id: string): FleetError {
  return new FleetError("FLEET_SESSION_LOST", `The history of session ${quote(id)} does not have this turn.`);
}

export function keyReused(key: string): FleetError {
  const message = `The idempotency key ${quote(key)} belongs to another request.`;
  return new FleetError("FLEET_IDEMPOTENCY_KEY_REUSED", message, {
    suggestions: [
      "Choose another key for each prompt, for example a random one.",
      "Repeat a request without a change.",
    ],
  });
}

export function sessionBusy(id: string): FleetError {
  return new FleetError("FLEET_SESSION_BUSY", `Session ${quote(id)} is in a turn.`, {
    suggestions: ["Try again when the turn has ended.", "copilotfleet list --state active"],
  });
}

/** The error for a server that is about to be stopped or replaced. The user can try again. */
export function serverDraining(id: string): FleetError {
  return new FleetError("FLEET_POOL_DRAINING", `Server ${id} is being drained and takes no new turns.`, {
    suggestions: ["Try again in a moment.", "copilotfleet ps"],
  });
}

export function leaseLost(
  { sessionId, holder }: Pick<Lease, "sessionId" | "holder">,
  why: string,
  cause?: unknown,
): FleetError {
  const message = `The lease of ${quote(holder)} on session ${quote(sessionId)} is lost: ${why}.`;
  return new FleetError("FLEET_LEASE_LOST", message, { cause, suggestions: [`copilotfleet lock ${sessionId} --show`] });
}

/** @param successor the lease that is in force now; null if there is none */
export function leaseOver(
  lease: Pick<Lease, "sessionId" | "holder">,
  successor: Lease | null,
  cause?: unknown,
): FleetError {
  return leaseLost(lease, successor === null ? "it ended" : takenBy(successor), cause);
}

function takenBy({ holder, stealReason }: Lease): string {
  return stealReason === null
    ? `it ended, and ${quote(holder)} has it now`
    : `${quote(holder)} took it over (${quote(stealReason)})`;
}

export interface SessionsContext {
  store: Store;
  config: Config;
  env: NodeJS.ProcessEnv;
  pool: Pool;
  clients: Clients;
  leases: Leases;
  directory: HostDirectory;
  takeover: Takeover;
  requests: AgentRequests;
  /** Records turns, and the model requests that no model gateway of this process passes on. */
  ledger: UsageRecorder;
  provider: Pick<
    ModelProvider,
    | "check"
    | "of"
    | "keep"
    | "attribute"
    | "expectRequests"
    | "hasPassed"
    | "troubleOf"
    | "beforeRequests"
    | "lastGiven"
    | "noteGiven"
  >;
  events: EventLog;
  /** Reports a problem that did not stop the work. */
  warn: (message: string) => void;
}
