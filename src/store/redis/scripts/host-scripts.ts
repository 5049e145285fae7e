import { foundingScript, script } from "./scripts.js";

/*
 * A host's entry is a hash. It contains the instance, the facts that the host publishes, its term, and the time until
 * which it is alive by Redis's own clock. It also contains the process that wrote it last, and the number of that
 * process's last message. A process counts its messages, so that the scripts can ignore a message that was repeated and
 * arrives after a later one.
 */

/** Whether the same process has already written a later message. `by` and `number` come from the caller. */
const OVERTAKEN = `
local function overtaken(by, number)
  local last = redis.call('HMGET', KEYS[3], 'by', 'number')
  return last[1] == by and tonumber(last[2]) > tonumber(number)
end
`;

/**
 * KEYS[3] entry, [4] set of all hosts, [5] fence. ARGV[5] name, [6] instance, [7] entry as JSON, [8] TTL (ms), [9] process
 * that writes, [10] number of its message, [11] signature of the entry. Answers `ok` with the term, or `taken` with the
 * entry of the other instance.
 *
 * Terms come from the counter for fences, so they grow even if Redis loses all data. The script first deletes a field that
 * never exists, because a full Redis refuses a script whose first write needs memory. Without this deletion, all hosts would
 * count as gone when Redis is full.
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
redis.call('HSET', KEYS[3], 'instance', ARGV[6], 'until', now + ARGV[8], 'term', term, 'entry', ARGV[7], 'by', ARGV[9], 'number', ARGV[10], 'mac', ARGV[11])
redis.call('SADD', KEYS[4], ARGV[5])
return {'ok', term}
`);

/** KEYS[3] entry. ARGV[5] instance, [6] process that writes, [7] number of its message. Works on a full Redis, too. */
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

/**
 * KEYS[3] and later keys: entries. Answers `seen` with the time, and with five values for each entry: instance, term, facts
 * as JSON, how long the host still counts as alive (ms), and the signature.
 */
export const LOOK_AT_HOSTS = script(`
local answer = {'seen', now}
for index = 3, #KEYS do
  local seen = redis.call('HMGET', KEYS[index], 'instance', 'term', 'entry', 'until', 'mac')
  answer[#answer + 1] = seen[1]
  answer[#answer + 1] = seen[2]
  answer[#answer + 1] = seen[3]
  answer[#answer + 1] = seen[4] and tonumber(seen[4]) - now
  answer[#answer + 1] = seen[5]
end
return answer
`);

/**
 * KEYS[3] entry. ARGV[5] instance, [6] facts as JSON, [7] signature. Sets the signature of a host's entry if the
 * instance and the facts are still the same. Otherwise answers `conflict`.
 */
export const SIGN_HOST = script(`
local seen = redis.call('HMGET', KEYS[3], 'instance', 'entry')
if seen[1] ~= ARGV[5] or seen[2] ~= ARGV[6] then return {'conflict'} end
redis.call('HSET', KEYS[3], 'mac', ARGV[7])
return {'ok'}
`);
