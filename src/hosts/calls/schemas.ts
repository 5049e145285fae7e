import * as v from "valibot";
import { validateSessionId, validateUser } from "../../base/ids.js";
import type { LimitsReport, Protection, SandboxReport } from "../../base/sandbox.js";
import type { TokenSource } from "../../base/server.js";
import type { Lease } from "../../base/session.js";
import { isTokenId, type TokenEnd } from "../../base/token.js";
import type { QuotaPart } from "../../base/usage.js";
import { LONGEST_TIMER_MS } from "../../base/values/measures.js";
import { isObject } from "../../base/values/text.js";
import type { HistoryFate, HistoryPart, HistoryPosition } from "../../runtime/history/line.js";
import type { LogEnd, LogPosition } from "../../serve/logs.js";
import type { Sample } from "../../serve/report/measurements.js";
import type { RollingResult } from "../../servers/recycle.js";
import type { ServerView } from "../../servers/server.js";
import type { Stopped } from "../../servers/stop.js";
import type { GcResult } from "../../sessions/gc/collect.js";
import type { SessionPlace } from "../../sessions/history.js";
import type { EvictionResult, KeptReason, ServerActivity } from "../../sessions/memory/eviction.js";
import type { Purged } from "../../sessions/purge.js";
import type { RemainKind } from "../../sessions/remains.js";
import type { AgentRequest, AskedPermission, RequestAnswer, RequestChange } from "../../sessions/requests.js";
import type { PromptHistory } from "../../sessions/use/open-session.js";
import type { SessionView } from "../../sessions/view.js";
import type { UnreadableError } from "../../store/failures.js";
import type { RollingRequest, SpawnRequest, StopRequest } from "../options.js";

/*
 * The schemas of the calls between hosts and of their answers. Hosts may have different versions of copilotfleet. So
 * the schemas ignore unknown fields, and a field that is new must be optional.
 */

export type Schema<T> = v.GenericSchema<unknown, T>;

/** Unlike `v.object`, refuses a list. */
const record = v.custom<object>(isObject, "an object");

export const object = <Entries extends v.ObjectEntries>(entries: Entries) => v.pipe(record, v.object(entries));

// The parameters of calls. We do not trust them, even though the caller is another host of the fleet.

const isText = (value: unknown) => typeof value === "string" && value !== "";

export const text = v.custom<string>((value) => isText(value) && !String(value).includes("\0"), "a text");

export const texts = v.custom<readonly string[]>(
  (value) => Array.isArray(value) && value.every(isText),
  "a list of texts",
);

export const flag = v.boolean("true or false");

export function whole(max: number): Schema<number> {
  const isWhole = (value: unknown) => Number.isSafeInteger(value) && Number(value) >= 0 && Number(value) <= max;
  return v.custom<number>(isWhole, `a whole number from 0 to ${max}`);
}

const toUser = (id: string) => validateUser(id);
const toSessionId = (id: string) => validateSessionId(id);

export const user = v.pipe(text, v.transform(toUser));
export const users: Schema<readonly string[]> = v.pipe(texts, v.mapItems(toUser));
export const sessionId = v.pipe(text, v.transform(toSessionId));
export const sessionIds: Schema<readonly string[]> = v.pipe(texts, v.mapItems(toSessionId));

/** Refuses every token source, because only this host's operator may name its variables, files and programs. */
const tokenSource: Schema<TokenSource> = v.custom<TokenSource>(
  () => false,
  "allowed, because only this host names its token sources",
);

export const spawnRequest: Schema<SpawnRequest> = object({
  token: v.exactOptional(tokenSource),
  cwd: v.exactOptional(text),
  waitMs: v.exactOptional(whole(LONGEST_TIMER_MS)),
});

const drainTimeoutMs = v.exactOptional(whole(LONGEST_TIMER_MS));

export const stopRequest: Schema<Omit<StopRequest, "signal">> = object({
  drainTimeoutMs,
  force: v.exactOptional(flag),
});

const MAX_COUNT = 1_000_000;

export const rollingRequest: Schema<Omit<RollingRequest, "signal">> = object({
  drainTimeoutMs,
  maxUnavailable: v.pipe(
    v.optional(whole(MAX_COUNT), 1),
    v.transform((count) => Math.max(1, count)),
  ),
});

export const logPosition: Schema<LogPosition> = object({
  offset: whole(Number.MAX_SAFE_INTEGER),
  rotated: v.nullish(whole(Number.MAX_SAFE_INTEGER), null),
});

/** `ino` may be any number, because an inode number may be larger than the largest exact integer. */
export const historyPosition: Schema<HistoryPosition> = object({
  ino: v.number("a number"),
  offset: whole(Number.MAX_SAFE_INTEGER),
  mark: v.string("a text"),
});

export const sessionPlaces: Schema<readonly SessionPlace[]> = v.array(
  object({ id: sessionId, serverId: text, owner: user }),
  "a list of sessions",
);

export const time = v.custom<string>((value) => isText(value) && !Number.isNaN(Date.parse(String(value))), "a time");

export const tokenEnds: Schema<readonly TokenEnd[]> = v.array(
  object({
    id: v.custom<string>((value) => isText(value) && isTokenId(String(value)), "the id of a token"),
    at: v.nullable(time),
    until: v.nullable(time),
  }),
  "a list of tokens",
);

// The answers to calls.

export const string = v.string("a text");
const number = v.number("a number");
const strings = v.array(string, "a list");

/** Accepts any text, because a newer version may use words that this version does not know. */
export function word<T extends string>(): Schema<T> {
  return v.custom<T>((value) => typeof value === "string", "a text");
}

export function list<T>(item: Schema<T>): Schema<T[]> {
  return v.array(item, "a list");
}

const sandboxReport: Schema<SandboxReport> = object({
  mode: word<SandboxReport["mode"]>(),
  not: list(word<Protection>()),
  limits: v.exactOptional(
    object({
      by: word<LimitsReport["by"]>(),
      memory: v.nullable(number),
      processes: v.nullable(number),
      openFiles: v.nullable(number),
      cpu: v.nullable(number),
      disk: v.nullable(number),
      perProcess: list(word<LimitsReport["perProcess"][number]>()),
      notHeld: list(word<LimitsReport["notHeld"][number]>()),
      cgroups: strings,
      reached: v.exactOptional(object({ memory: number, processes: number, cpu: number })),
    }),
  ),
});

export const serverView: Schema<ServerView> = object({
  id: string,
  user: v.nullable(string),
  isolation: word<ServerView["isolation"]>(),
  hostName: v.nullable(string),
  away: flag,
  host: string,
  port: v.nullable(number),
  url: v.nullable(string),
  pid: v.nullable(number),
  state: word<ServerView["state"]>(),
  failure: v.nullable(string),
  crashes: number,
  home: string,
  cwd: string,
  log: string,
  startedAt: v.nullable(string),
  uptimeMs: v.nullable(number),
  memoryBytes: v.nullable(number),
  sessions: v.nullable(number),
  activeSessions: number,
  version: v.nullable(string),
  sandbox: sandboxReport,
});

export const spawned = object({ server: serverView, created: flag });

export const stopped: Schema<Stopped> = object({
  id: string,
  outcome: word<Stopped["outcome"]>(),
  cut: strings,
  hostName: v.exactOptional(string),
});

export const restarted: Schema<RollingResult> = object({ stopped: list(stopped), servers: list(serverView) });

export const logEnd: Schema<LogEnd> = object({ server: string, log: string, lines: strings, at: logPosition });

export const quota: Schema<QuotaPart[] | null> = v.nullable(
  list(
    object({ kind: string, used: number, included: v.nullable(number), overage: number, resetsAt: v.nullable(string) }),
  ),
);

export const moreLog = object({ bytes: string, at: logPosition });

const lease: Schema<Lease> = object({
  sessionId: string,
  holder: string,
  fence: number,
  acquiredAt: string,
  expiresAt: string,
  remainingMs: number,
  ttlMs: number,
  stealReason: v.nullable(string),
  detached: v.exactOptional(v.literal(true)),
});

export const sessionView: Schema<SessionView> = object({
  id: string,
  owner: string,
  purpose: v.nullable(string),
  title: v.nullable(string),
  kind: word<SessionView["kind"]>(),
  members: strings,
  persistence: word<SessionView["persistence"]>(),
  serverId: string,
  host: v.nullable(string),
  stranded: flag,
  state: word<SessionView["state"]>(),
  model: v.nullable(string),
  createdAt: string,
  lastUsedAt: string,
  ttlMs: v.nullable(number),
  expiresAt: v.nullable(string),
  sizeBytes: number,
  lease: v.nullable(lease),
});

/** A part of a history, with its bytes in base64. */
export const historyPart: Schema<Omit<HistoryPart, "bytes"> & { bytes: string }> = object({
  bytes: string,
  at: v.nullable(historyPosition),
  atEnd: flag,
  fate: word<HistoryFate>(),
});

export const promptHistory: Schema<PromptHistory> = object({
  bytes: number,
  prompts: v.array(object({ messageId: v.optional(string), content: v.optional(string) })),
});

export const loadedSession = object({ id: string, usedMs: number });

export const serverActivity: Schema<ServerActivity> = object({
  id: string,
  latencyMs: v.nullable(number),
  turns: v.nullable(strings),
});

export const sample: Schema<Sample> = object({
  at: string,
  turns: object({ completed: number, failed: number, aborted: number, cut: number }),
  turnMs: object({ p50: v.nullable(number), p95: v.nullable(number) }),
  turnsInFlight: number,
  servers: number,
  activeSessions: number,
  evictions: number,
  memoryBytes: number,
});

export const evictionResult: Schema<EvictionResult> = object({
  evicted: strings,
  skipped: list(object({ id: string, reason: word<KeptReason>() })),
});

export const deletedIds = strings;

const remain = object({ kind: word<RemainKind>(), session: v.nullable(string), bytes: number });

export const gcResult: Schema<GcResult> = object({
  deleted: list(object({ id: string, owner: v.nullable(string), ageMs: number, bytes: number })),
  skipped: list(object({ id: string, reason: word<GcResult["skipped"][number]["reason"]>() })),
  freedBytes: number,
  dryRun: flag,
  servers: list(object({ id: string, action: word<GcResult["servers"][number]["action"]>() })),
  remains: list(remain),
  unreadable: list(
    object({ id: string, code: word<UnreadableError["code"]>(), message: string, suggestions: strings }),
  ),
});

/* The schemas of the calls that move the archive of a session to or from another host, or erase the data of a user. */

const count = whole(Number.MAX_SAFE_INTEGER);

export const namedArchive = object({ name: string });
export const writtenArchive = object({ name: string, bytes: count, leftOut: count });
export const archivePart = object({ bytes: string });

export const purged: Schema<Purged> = object({
  sessions: count,
  servers: count,
  tokens: count,
  bytes: count,
  remains: list(object({ host: v.nullable(string), what: string, why: string })),
});

/* The schemas of the agent's permissions and questions in the calls between hosts. */
export const requestAnswer: Schema<RequestAnswer> = object({
  decision: v.exactOptional(v.picklist(["approve", "deny"], "approve or deny")),
  reason: v.exactOptional(v.string("a text")),
  answer: v.exactOptional(v.string("a text")),
});

const permission = v.custom<AskedPermission>(
  (value) => isObject(value) && typeof value.kind === "string",
  "a permission",
);

export const agentRequest: Schema<AgentRequest> = object({
  id: string,
  session: string,
  user: string,
  kind: word<AgentRequest["kind"]>(),
  openedAt: string,
  expiresAt: string,
  permission: v.nullish(permission, null),
  question: v.nullish(
    object({ question: string, choices: v.nullish(v.array(string, "a list"), null), freeform: flag }),
    null,
  ),
  outcome: v.nullish(word<NonNullable<AgentRequest["outcome"]>>(), null),
});

export const requestChange: Schema<RequestChange> = object({
  type: word<RequestChange["type"]>(),
  request: agentRequest,
});
