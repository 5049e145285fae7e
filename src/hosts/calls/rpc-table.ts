import * as v from "valibot";
import { FleetError, quote } from "../../base/errors.js";
import type { OnProgress } from "../../base/progress.js";
import { LONGEST_MS, LONGEST_TIMER_MS } from "../../base/values/measures.js";
import type { Config } from "../../config/schema.js";
import { actingAs } from "../../identity/acting.js";
import { MORE_LOG_MS } from "../local-host.js";
import type { SpawnRequest, StopRequest } from "../options.js";
import * as e from "./event-schemas.js";
import * as a from "./schemas.js";
import * as r from "./schemas.js";
import * as s from "./schemas.js";

interface Row<Params, Answer> {
  params: v.GenericSchema<unknown, Params>;
  answer: v.GenericSchema<unknown, Answer>;
  /** How long the other host may take, in milliseconds. `config` is the configuration of the host that asks. */
  limitMs: (params: Params, config: Config) => number;
}

/** The limit for calls that only read, in milliseconds. */
const LOOK_MS = 10_000;
/** The limit for calls that may have to start a server or wait for one, in milliseconds. */
const START_MS = 30_000;
/** How long a stop and a start may take in addition to the drain, in milliseconds. */
const BEYOND_DRAIN_MS = 60_000;
const GC_MS = 10 * 60_000;
const PURGE_MS = 10 * 60_000;
const ARCHIVE_MS = 10 * 60_000;
const VERIFY_MS = 10 * 60_000;
const MAX_LINES = 1_000_000;

const toLook = () => LOOK_MS;
const toWork = () => START_MS;
const toStart = ({ request: { waitMs = START_MS } }: { request: SpawnRequest }) => waitMs + LOOK_MS;
const toStop = ({ request: { drainTimeoutMs } }: { request: StopRequest }, { drain }: Config) =>
  (drainTimeoutMs ?? drain.timeoutMs) + BEYOND_DRAIN_MS;

const servers = s.list(s.serverView);

const garbage = { ttlMs: v.nullable(s.whole(LONGEST_MS)), dryRun: s.flag };

const calls = {
  spawn: call({ user: s.user, request: s.spawnRequest }, s.spawned, toStart),
  spawnMany: call({ users: s.users, request: s.spawnRequest }, servers, toStart),
  serverFor: call({ user: s.user, request: s.spawnRequest }, s.serverView, toStart),
  servers: call({}, servers, toLook),
  server: call({ id: s.text }, s.serverView, toLook),
  stop: call({ ids: s.texts, request: s.stopRequest }, s.list(s.stopped), toStop),
  restart: call({ ids: s.texts, request: s.stopRequest }, s.restarted, toStop),
  restartRolling: call(
    { ids: s.texts, request: s.rollingRequest },
    s.restarted,
    (params, config) => toStop(params, config) * params.ids.length,
  ),
  logEnd: call(
    {
      id: s.text,
      lines: s.whole(MAX_LINES),
      sinceMs: v.optional(v.number("a time in milliseconds")),
      previous: v.optional(s.flag),
    },
    s.logEnd,
    toLook,
  ),
  /**
   * The bytes after a position in a log, in base64. If the log has no more bytes, the other host waits a few seconds
   * for them.
   */
  moreLog: call({ id: s.text, at: s.logPosition }, s.moreLog, () => MORE_LOG_MS + LOOK_MS),
  quota: call({ user: s.user }, s.quota, toLook),
  sessions: call({ user: v.optional(s.user) }, s.list(s.sessionView), toLook),
  sessionOf: call({ id: s.sessionId, user: s.user }, s.sessionView, toLook),
  history: call({ id: s.sessionId, user: s.user, from: v.optional(s.historyPosition) }, s.historyPart, toLook),
  /** For each session, a text that changes whenever the session's history changes. */
  histories: call({ sessions: s.sessionPlaces }, s.list(s.string), toLook),
  prompts: call(
    { id: s.sessionId, user: s.user, fromBytes: v.optional(s.whole(Number.MAX_SAFE_INTEGER)) },
    s.promptHistory,
    toLook,
  ),
  loaded: call({}, s.list(s.loadedSession), toLook),
  activity: call({}, s.list(s.serverActivity), toLook),
  /** The host's samples that are newer than the time `after`; all samples if `after` is missing. */
  samples: call({ after: v.optional(s.time) }, s.list(s.sample), toLook),
  evict: call({ ids: s.sessionIds }, s.evictionResult, toWork),
  abort: call({ id: s.sessionId, user: s.user }, s.flag, toLook),
  /** The agent requests on the host that wait for this user's answer, and the requests that ended most recently. */
  requests: call({ id: s.sessionId, user: s.user }, s.list(r.agentRequest), toLook),
  answerRequest: call(
    { id: s.sessionId, user: s.user, request: s.text, answer: r.requestAnswer },
    r.agentRequest,
    toLook,
  ),
  /** Tells the host that a request of the agent was opened or closed at another host. */
  noteRequest: call({ change: r.requestChange }, s.flag, toLook),
  deleteSessions: call({ ids: s.sessionIds, user: v.optional(s.user) }, s.deletedIds, toWork),
  gc: call({ ...garbage, user: v.optional(s.user), sessionIds: v.optional(s.sessionIds) }, s.gcResult, () => GC_MS),
  /** Makes the host remember that tokens were revoked or got an earlier expiry. The answer is the number of tokens. */
  endTokens: call({ ends: s.tokenEnds }, v.number("a number"), toLook),
  /** The tokens that the host remembers as revoked or with an earlier expiry. */
  tokenEnds: call({}, s.tokenEnds, toLook),
  /** A part of the host's audit log. If it has no event, the host waits for one, up to `waitMs`, before it answers. */
  events: call(e.eventQuery, e.eventPage, ({ waitMs = 0 }) => waitMs + LOOK_MS),
  verifyEvents: call({}, e.verified, () => VERIFY_MS),
  /** Erases that host's part of a user's data. With `dryRun`, only reports it. */
  purge: call({ user: s.user, dryRun: s.flag }, a.purged, () => PURGE_MS),
  /** Writes the archive of a session at that host, between the session's turns. */
  exportSession: call(
    { id: s.sessionId, user: s.user, waitMs: v.optional(s.whole(LONGEST_TIMER_MS)) },
    a.writtenArchive,
    ({ waitMs = START_MS }) => waitMs + ARCHIVE_MS,
  ),
  /** Reads a part of an archive at that host, in base64. At the end of the archive, the part is empty. */
  readArchive: call({ name: s.text, offset: s.whole(Number.MAX_SAFE_INTEGER) }, a.archivePart, toLook),
  dropArchive: call({ name: s.text }, s.flag, toLook),
  /** Adds a part, in base64, to an archive at that host. Without a name, begins a new archive. */
  writeArchive: call(
    { name: v.optional(s.text), offset: s.whole(Number.MAX_SAFE_INTEGER), bytes: s.string },
    a.namedArchive,
    toLook,
  ),
  /** Creates a session from an archive at that host, and removes the archive. */
  importArchive: call({ name: s.text, user: s.user, id: v.optional(s.sessionId) }, s.flag, () => ARCHIVE_MS),
};

export type Method = keyof typeof calls;
export type ParamsOf<M extends Method> = v.InferOutput<(typeof calls)[M]["params"]>;
export type AnswerOf<M extends Method> = v.InferOutput<(typeof calls)[M]["answer"]>;

const CALLS: { readonly [M in Method]: Row<ParamsOf<M>, AnswerOf<M>> } = calls;

export interface Call {
  /** Cancels the call, for example when the host that asked closes its connection. */
  signal?: AbortSignal | undefined;
  /** Only a call on this host reports progress. */
  onProgress?: OnProgress | undefined;
}

/** All calls that one host can make to another. */
export type Calls = {
  readonly [M in Method]: (params: ParamsOf<M>, call?: Call) => Promise<AnswerOf<M>>;
};

export const CALL_NAMES = Object.keys(CALLS);

/** Lets the compiler infer the types of a call from its schemas. */
function call<Entries extends v.ObjectEntries, Answer>(
  params: Entries,
  answer: v.GenericSchema<unknown, Answer>,
  limitMs: (params: v.InferOutput<v.ObjectSchema<Entries, undefined>>, config: Config) => number,
): Row<v.InferOutput<v.ObjectSchema<Entries, undefined>>, Answer> {
  return { params: v.object(params), answer, limitMs };
}

/** How long another host may take for a call, in milliseconds. */
export function limitOf<M extends Method>(method: M, params: ParamsOf<M>, config: Config): number {
  return CALLS[method].limitMs(params, config);
}

export function readAnswer<M extends Method>(method: M, given: unknown, host: string): AnswerOf<M> {
  const read = v.safeParse(CALLS[method].answer, given);
  if (read.success) return read.output;
  const message = `Host ${host} gave an answer to ${quote(method)} that this version cannot read: ${problemOf(read.issues, "it")}.`;
  throw new FleetError("FLEET_PROTOCOL_UNSUPPORTED", message, { suggestions: [SAME_VERSION] });
}

/**
 * Checks a call from another host and performs it on this host. The events of the call name the actor that the other
 * host sent.
 */
export async function answerCall(own: Calls, method: string, given: object, signal: AbortSignal): Promise<unknown> {
  if (Object.hasOwn(CALLS, method)) {
    const { actor: sent, ...params } = { actor: undefined, ...given };
    const actor = v.safeParse(e.actor, sent);
    return await actingAs(
      actor.success ? actor.output : {},
      async () => await run(own, method as Method, params, signal),
    );
  }
  throw new FleetError("FLEET_METHOD_DENIED", `This host does not know the method ${quote(method)}.`, {
    suggestions: [SAME_VERSION],
  });
}

async function run<M extends Method>(own: Calls, method: M, given: object, signal: AbortSignal): Promise<AnswerOf<M>> {
  const read = v.safeParse(CALLS[method].params, withoutNulls(given));
  if (read.success) return await own[method](read.output, { signal });
  throw new FleetError("FLEET_USAGE_INVALID", `${problemOf(read.issues, "params", " in a call from another host")}.`, {
    suggestions: [SAME_VERSION],
  });
}

const SAME_VERSION = "Use the same version of copilotfleet on all hosts.";

/** Removes parameters that are null, because a caller may send null for a parameter that it leaves out. */
function withoutNulls(value: unknown): unknown {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  const given = Object.entries(value).filter(([, each]) => each !== null);
  return Object.fromEntries(given.map(([name, each]) => [name, withoutNulls(each)]));
}

/**
 * @returns the first problem, as a sentence without its full stop. @param whole the name of the complete value, for a
 * problem outside its fields
 */
function problemOf([issue]: [v.BaseIssue<unknown>, ...unknown[]], whole: string, where = ""): string {
  const name = issue.path?.map(({ key }) => key).findLast((key) => typeof key === "string");
  const subject = name === undefined ? whole : quote(name);
  return `${subject}${where} ${issue.input === undefined ? "is missing" : `is not ${issue.message}`}`;
}
