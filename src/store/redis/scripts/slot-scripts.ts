import { foundingScript, script } from "./scripts.js";

/*
 * The slots that users have in use, by the clock of Redis. A slot expires unless its process renews it, so the slots of
 * dead processes and hosts end by themselves.
 *
 * Each script has the same effect whether it runs once or twice.
 */

/**
 * KEYS[3] the slots of the kind: ids, scored by the time at which each expires, [4] the turns of the last minute: ids,
 * scored by the time at which each began, [5] the user's recorded sessions. ARGV[5] id, [6] most slots or '', [7] most
 * turns per minute or '', [8] TTL of the slot (ms) or '' for none, [9] '1' if it is a turn or a prompt, [10] '1' if
 * recorded sessions count, [11] the minute (ms).
 *
 * The id of the slot of a session begins with the id of the session and "~".
 */
export const TAKE = foundingScript(`
local slots, begun, id, minute = KEYS[3], KEYS[4], ARGV[5], tonumber(ARGV[11])
redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
redis.call('ZREMRANGEBYSCORE', begun, '-inf', now - minute)
if redis.call('ZSCORE', slots, id) or redis.call('ZSCORE', begun, id) then return {'granted'} end
if ARGV[7] ~= '' then
  local used, most = redis.call('ZCARD', begun), tonumber(ARGV[7])
  if used >= most then
    local leaving = redis.call('ZRANGE', begun, used - most, used - most, 'WITHSCORES')
    return {'perMinute', used, tonumber(leaving[2]) + minute - now}
  end
end
if ARGV[6] ~= '' then
  local taken, used = redis.call('ZRANGE', slots, 0, -1), redis.call('ZCARD', slots)
  if ARGV[10] == '1' then
    local seen = {}
    used = redis.call('SCARD', KEYS[5])
    for _, slot in ipairs(taken) do
      local session = string.match(slot, '^[^~]*')
      if not seen[session] and redis.call('SISMEMBER', KEYS[5], session) == 0 then
        seen[session] = true
        used = used + 1
      end
    end
  end
  if used >= tonumber(ARGV[6]) then
    local answer = {'most', used, ''}
    for at = 1, math.min(#taken, 1000) do answer[at + 3] = taken[at] end
    return answer
  end
end
if ARGV[8] ~= '' then
  redis.call('ZADD', slots, now + ARGV[8], id)
  redis.call('PEXPIRE', slots, ARGV[8])
end
if ARGV[9] == '1' then
  redis.call('ZADD', begun, now, id)
  redis.call('PEXPIRE', begun, minute)
end
return {'granted'}
`);

/** KEYS[3] slots, [4] turns of the last minute. ARGV[5] '1' if the turn has begun, [6] and so on: ids. */
export const GIVE_BACK = script(`
for at = 6, #ARGV do
  redis.call('ZREM', KEYS[3], ARGV[at])
  if ARGV[5] ~= '1' then redis.call('ZREM', KEYS[4], ARGV[at]) end
end
return {'ok'}
`);

/** KEYS[3] and so on: for each id, the key of the slots to which it belongs. ARGV[5] TTL (ms), [6] and so on: ids. */
export const KEEP = script(`
for at = 6, #ARGV do
  local slots = KEYS[at - 3]
  redis.call('ZADD', slots, now + ARGV[5], ARGV[at])
  redis.call('PEXPIRE', slots, ARGV[5])
end
return {'ok'}
`);

/** KEYS[3] turns of the last minute, [4] and so on: slots. ARGV[5] the minute (ms). */
export const USED = script(`
local answer = {'used', redis.call('ZCOUNT', KEYS[3], '(' .. (now - ARGV[5]), '+inf')}
for at = 4, #KEYS do answer[at - 1] = redis.call('ZCOUNT', KEYS[at], '(' .. now, '+inf') end
return answer
`);

/**
 * KEYS[3] the key that stores the last period. ARGV[5] the start of a period (ms), [6] a random text, which identifies
 * the call if it is repeated, [7] TTL of the key (ms). Answers `first` if no other call has written this period or a
 * later one, and otherwise `known`.
 */
export const FIRST = script(`
local own = ARGV[5] .. ' ' .. ARGV[6]
local known = redis.call('GET', KEYS[3])
if known and tonumber(string.match(known, '^%d+')) >= tonumber(ARGV[5]) then
  return {known == own and 'first' or 'known'}
end
redis.call('SET', KEYS[3], own, 'PX', ARGV[7])
return {'first'}
`);

/** Deletes KEYS[3] and all later keys, which are all about one user. Every script has the same KEYS[1] and KEYS[2]. */
export const CLEAR = script(`
redis.call('DEL', unpack(KEYS, 3))
return {'ok'}
`);
