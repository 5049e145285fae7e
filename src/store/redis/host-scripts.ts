import { foundingScript, script } from "./scripts.js";

/*
 * A host's entry is a hash: instance, what it says of itself, its term, and until when it is there, by Redis's own clock; and
 * which process wrote it last, with a number that grows with each thing that one has to say. Beating twice has the outcome of
 * once, so a cut connection needs no mark; but what is sent again may come after what was said later, and is ignored then.
 */

/** `by` and `number` are of the caller. */
const OVERTAKEN = `
local function overtaken(by, number)
  local last = redis.call('HMGET', KEYS[3], 'by', 'number')
  return last[1] == by and tonumber(last[2]) > tonumber(number)
end
`;

/**
 * KEYS[3] entry, [4] set of all hosts, [5] fence. ARGV[5] name, [6] instance, [7] entry as JSON, [8] TTL (ms), [9] by
 * whom, [10] its number. Answers `ok` with the term, or `taken` with what the other one said.
 *
 * Terms come from where fences do: they grow also over a loss of all data. A field that is never there is deleted first: with
 * memory full, Redis refuses no write of a script that has written already, and a fleet would lose its hosts otherwise.
 */
export const BEAT = foundingScript(`${OVERTAKEN}
local seen = redis.call('HMGET', KEYS[3], 'instance', 'until', 'term', 'entry')
local there = seen[2] and tonumber(seen[2]) > now
if there and seen[1] ~= ARGV[6] then return {'taken', seen[4]} end
if overtaken(ARGV[9], ARGV[10]) then return {'ok', seen[3]} end
redis.call('HDEL', KEYS[3], '')
local term = seen[3]
if not there then
  term = redis.call('INCR', KEYS[5])
  if term < now then
    term = now
    redis.call('SET', KEYS[5], now)
  end
end
redis.call('HSET', KEYS[3], 'instance', ARGV[6], 'until', now + ARGV[8], 'term', term, 'entry', ARGV[7], 'by', ARGV[9], 'number', ARGV[10])
redis.call('SADD', KEYS[4], ARGV[5])
return {'ok', term}
`);

/** KEYS[3] entry. ARGV[5] instance, [6] by whom, [7] its number. Goes on with memory full, as a heartbeat does. */
export const LEAVE_HOSTS = script(`${OVERTAKEN}
if redis.call('HGET', KEYS[3], 'instance') ~= ARGV[5] or overtaken(ARGV[6], ARGV[7]) then return {'ok'} end
redis.call('HDEL', KEYS[3], '')
redis.call('HSET', KEYS[3], 'until', 0, 'by', ARGV[6], 'number', ARGV[7])
return {'ok'}
`);

/** KEYS[3] entry, [4] set of all hosts. ARGV[5] name. Answers `forgotten`, `absent` or `there`. */
export const FORGET_HOST = script(`
local untilThen = redis.call('HGET', KEYS[3], 'until')
if untilThen and tonumber(untilThen) > now then return {'there'} end
redis.call('DEL', KEYS[3])
if redis.call('SREM', KEYS[4], ARGV[5]) == 0 then return {'absent'} end
return {'forgotten'}
`);

/** KEYS[3] and on: entries. Answers `seen` with four values for each: instance, term, entry, and how long it is there (ms). */
export const LOOK_AT_HOSTS = script(`
local answer = {'seen'}
for index = 3, #KEYS do
  local seen = redis.call('HMGET', KEYS[index], 'instance', 'term', 'entry', 'until')
  answer[#answer + 1] = seen[1]
  answer[#answer + 1] = seen[2]
  answer[#answer + 1] = seen[3]
  answer[#answer + 1] = seen[4] and tonumber(seen[4]) - now
end
return answer
`);
