import * as v from "valibot";
import * as s from "./schemas.js";

const ALLOWED_TIME = 'a time, such as "2026-01-31T12:00:00Z"';

export const sampleFilter = s.object({
  after: v.optional(
    v.pipe(
      v.string(ALLOWED_TIME),
      v.isoTimestamp(ALLOWED_TIME),
      v.description("The time of the last sample that the client has. Default: all samples."),
    ),
  ),
});

const number = v.number();
const count = (what: string) => v.pipe(number, v.description(what));
const numberOrNull = v.nullable(number);

export const busyServer = v.object({
  ...s.server.entries,
  turns: v.pipe(
    numberOrNull,
    v.description("The sessions in a turn. Null if the server does not run or does not answer."),
  ),
  latencyMs: v.pipe(numberOrNull, v.description("The time from a ping to its answer, in milliseconds.")),
});

export const servers = v.object({ servers: v.array(busyServer), pool: s.pool });

export const started = v.object({
  server: s.server,
  created: v.pipe(v.boolean(), v.description("False if the server already ran.")),
});

export const host = v.object({
  name: v.string(),
  state: v.picklist(["serving", "draining", "unattended", "gone"]),
  term: numberOrNull,
  heartbeatAgeMs: numberOrNull,
  door: v.nullable(v.string()),
  startedAt: v.nullable(s.time),
  servers: number,
  sessions: number,
  memoryBytes: number,
});
export const hosts = v.object({ hosts: v.array(host) });

export const sample = v.object({
  at: s.time,
  turns: v.pipe(
    v.object({ completed: number, failed: number, aborted: number, cut: number }),
    v.description("The turns that ended since the sample before."),
  ),
  turnMs: v.pipe(
    v.object({ p50: numberOrNull, p95: numberOrNull }),
    v.description(
      "How long the turns took that ended in the last minute, with the time that they waited for people. Null if none did.",
    ),
  ),
  turnsInFlight: number,
  servers: count("Servers that run."),
  activeSessions: count("Sessions in the memory of these servers."),
  evictions: count("Sessions that were unloaded since the sample before, because a server had too many."),
  memoryBytes: count("The private memory of the servers and of everything that their sessions started."),
});

export const samples = v.object({ hosts: v.array(v.object({ host: v.string(), samples: v.array(sample) })) });
