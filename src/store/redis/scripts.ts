import { createHash } from "node:crypto";

/** A Lua script, which Redis runs as one step: no other client sees anything in between (redis.io, "EVAL"). */
export interface Script {
  lua: string;
  /** Redis keeps scripts by it. */
  sha: string;
  /** Whether it makes the database a fleet's when it is none yet. */
  founds: boolean;
}

/** Every script begins with these keys: epoch and registry. */
export const COMMON_KEYS = 2;

/**
 * What every script begins with. `ARGV[2]` is when the caller will have given up, by the server's clock: a command that
 * lay in the buffers of a stalled server, or of a cut connection, must not be run after its failure was reported.
 * (`TIME` stands still within a script.)
 *
 * Answers are arrays that begin with a word. Of this part: `late` with the time, `epoch` with the one there is, `orphan`
 * for a registry without an epoch, `gone` for an epoch without a registry.
 */
const PRELUDE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[2]) then return {'late', now} end
local epoch = redis.call('GET', KEYS[1])
if (epoch or '') ~= ARGV[1] then return {'epoch', epoch or ''} end
local registry = redis.call('EXISTS', KEYS[2]) == 1
if registry and not epoch then return {'orphan'} end
if epoch and not registry then return {'gone'} end
`;

/** Epoch and registry appear together, so that from then on one without the other is a loss. */
const FOUND = `
if not epoch then
  redis.call('SET', KEYS[1], ARGV[3])
  redis.call('SET', KEYS[2], ARGV[4])
end
`;

export function script(body: string): Script {
  return make(PRELUDE + body, false);
}

/** For scripts that may be the first to write to a database. */
export function foundingScript(body: string): Script {
  return make(PRELUDE + FOUND + body, true);
}

/** Answers `now` with the server's time (ms). */
export const TELL_TIME = script("return {'now', now}");

function make(lua: string, founds: boolean): Script {
  return { lua, sha: createHash("sha1").update(lua).digest("hex"), founds };
}
