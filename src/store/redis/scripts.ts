import { createHash } from "node:crypto";

/** A Lua script. Redis runs it as one atomic step (redis.io, "EVAL"). */
export interface Script {
  lua: string;
  /** Redis stores scripts under this hash. */
  sha: string;
  /** Whether the script creates the fleet in an empty database. */
  founds: boolean;
}

/**
 * The beginning of every script. `KEYS[1]` is the epoch, and `ARGV[1]` the expected epoch. `ARGV[2]` is the time at
 * which the caller gives up, by the clock of Redis. After that time a script does nothing, because the caller has
 * already reported its failure.
 *
 * Every answer is an array that begins with a word. The beginning answers `late` with the time, or `epoch` with the
 * epoch in the database.
 */
const PRELUDE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[2]) then return {'late', now} end
local epoch = redis.call('GET', KEYS[1])
if (epoch or '') ~= ARGV[1] then return {'epoch', epoch or ''} end
`;

const FOUND = `
if not epoch then redis.call('SET', KEYS[1], ARGV[3]) end
`;

export function script(body: string): Script {
  return make(PRELUDE + body, false);
}

/** Makes a script that may be the first to write to a database. */
export function foundingScript(body: string): Script {
  return make(PRELUDE + FOUND + body, true);
}

/** Answers `now` with the time of Redis (ms). */
export const TELL_TIME = script("return {'now', now}");

function make(lua: string, founds: boolean): Script {
  return { lua, sha: createHash("sha1").update(lua).digest("hex"), founds };
}
