import { FleetError, quote, type Suggestion, systemCode } from "../../base/errors.js";
import { type RedisUrl, showRedisUrl } from "../../base/values/network.js";
import { redact } from "../../base/values/text.js";
import { corruptError as corrupt } from "../failures.js";

/** Redis cannot answer at the moment. Trying again may help. Callers of the store never see this error. */
export class Interruption extends Error {
  override readonly name = "Interruption";
  /** Whether the address seems to have no server, or only a server that we cannot trust. */
  readonly nobody: boolean;

  constructor(message: string, code?: string) {
    super(message);
    this.nobody = code !== undefined && !PASSING.has(code);
  }
}

/**
 * A replica refused a write and wrote nothing, so we may send the same command again. A new connection to the same
 * address may reach the primary.
 */
export class Demotion extends Interruption {
  /** The error that callers of the store get if trying again does not help. */
  readonly refusal: FleetError;

  constructor(refusal: FleetError) {
    super(refusal.message);
    this.refusal = refusal;
  }
}

/** System errors that a slow or restarting Redis may cause. So they do not show that the address is wrong. */
const PASSING: ReadonlySet<string> = new Set(["ECONNRESET", "EPIPE", "ETIMEDOUT"]);

/** Answers of a Redis that did not run the command, but may run it later. */
const NOT_NOW = /^(?:(?:LOADING|BUSY|TRYAGAIN|MASTERDOWN) |ERR max number of clients)/;
/** The error of a script does not begin with the code, so NO_WRITES and DEMOTED match anywhere in the text. */
const NO_WRITES = /\b(OOM command not allowed|MISCONF|NOREPLICAS)/;
const DEMOTED = /\bREADONLY You can't write/;
const NO_ENTRY = /^(?:NOAUTH|WRONGPASS|NOPERM|DENIED|ERR invalid password|ERR AUTH)/;
/** Answers to SELECT if Redis does not have that database. */
const NO_DATABASE = /^ERR (?:DB index is out of range|invalid DB index|SELECT is not allowed)/;
const ELSEWHERE = /\b(?:MOVED \d|CLUSTERDOWN|CROSSSLOT)/;

/**
 * Converts the error of a command into an error that callers of the store know. Keeps only the error's message, because
 * the library attaches the command and its arguments to the error, and these may include a password.
 */
export function explain(error: unknown, where: string): Error {
  if (error instanceof FleetError || error instanceof Interruption) return error;
  const text = error instanceof Error ? error.message : String(error);
  const message = redact(text);
  const cause = new Error(message);
  const isReply = error instanceof Error && error.name === "ReplyError";
  if (NOT_NOW.test(text)) return new Interruption(message);
  if (!isReply) {
    // If several addresses failed (AggregateError), the error has no message of its own.
    const code = systemCode(error);
    return new Interruption(message || `the connection failed (${code})`, code);
  }
  if (DEMOTED.test(text)) return new Demotion(unwritable(where, message, cause));
  if (NO_WRITES.test(text)) return unwritable(where, message, cause);
  if (NO_ENTRY.test(text)) return denied(where, message, cause);
  if (ELSEWHERE.test(text)) return elsewhere(where, message, cause);
  const [, key, kind] = /WRONGTYPE (\S+) is not a (\w+)/.exec(text) ?? [];
  if (key !== undefined) {
    const mend = "Delete the key, or restore a backup of the Redis database.";
    return corrupt(where, `the key ${quote(key)} is not a ${kind}`, mend, cause);
  }
  if (text.includes("WRONGTYPE")) return corruptError(where, "a key of the fleet has the wrong type", cause);
  return new FleetError("FLEET_INTERNAL", `Redis at ${where} refused a command: ${message}`, { cause });
}

/** Like {@link explain}, for the handshake, in which Redis may also answer that the database does not exist. */
export function explainOpening(error: unknown, target: RedisUrl, where: string): Error {
  const text = error instanceof Error ? error.message : String(error);
  if (!NO_DATABASE.test(text)) return explain(error, where);
  const what = `The setting "store" names ${quote(showRedisUrl(target))}, but Redis at ${where} has no database ${target.db}: ${text}.`;
  return new FleetError("FLEET_CONFIG_INVALID", what, {
    suggestions: [
      `${cli(where)} CONFIG GET databases`,
      'Set "store" (COPILOTFLEET_STORE) to an existing database, such as 0. "?fleet=NAME" keeps several fleets apart in one.',
    ],
    cause: new Error(text),
  });
}

export function unavailable(where: string, why: string, cause?: unknown): FleetError {
  const message = `Redis at ${where} does not answer: ${redact(why).replace(/\.$/, "")}.`;
  return new FleetError("FLEET_STORE_UNAVAILABLE", message, {
    suggestions: [`${cli(where)} PING`, "Look at the Redis server, and at the network in between."],
    cause,
  });
}

function unwritable(where: string, message: string, cause: Error): FleetError {
  const mend: Suggestion = message.includes("OOM")
    ? `${cli(where)} CONFIG SET maxmemory <more bytes>`
    : `${cli(where)} INFO ${message.includes("MISCONF") ? "persistence" : "replication"}`;
  const what = `Redis at ${where} takes no writes: ${message.replace(/\.?\s*(?:script: .*)?$/, "")}. Nothing was changed.`;
  return new FleetError("FLEET_STATE_UNWRITABLE", what, { suggestions: [mend], cause });
}

function denied(where: string, message: string, cause: Error): FleetError {
  const mend = message.startsWith("DENIED")
    ? "Give Redis a password (requirepass, or a user for the fleet) and put it into the store's URL."
    : "Correct the user and the password in the store's URL, or the permissions of that user in Redis (ACL).";
  const what = `Redis at ${where} does not let this user in: ${message.replace(/\.$/, "")}.`;
  return new FleetError("FLEET_STORE_UNUSABLE", what, { suggestions: [mend], cause });
}

function elsewhere(where: string, message: string, cause: Error): FleetError {
  const what = `Redis at ${where} is a node of a cluster that does not hold this fleet: ${message}.`;
  return new FleetError("FLEET_STORE_UNUSABLE", what, {
    suggestions: ["Set the store to a single Redis, or to the one node that holds the fleet's slot."],
    cause,
  });
}

export function corruptError(where: string, detail: string, cause?: unknown): FleetError {
  return corrupt(where, detail, "Restore a backup of the Redis database.", cause);
}

/** The beginning of a `redis-cli` command for people to type. */
export function cli(where: string): `redis-cli ${string}` {
  const [, host = "", port = ""] = /^\[?(.*?)\]?:(\d+)$/.exec(where) ?? [];
  return `redis-cli -h ${host} -p ${port}`;
}
