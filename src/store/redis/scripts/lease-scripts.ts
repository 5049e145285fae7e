import { QUEUE } from "./queue-lua.js";
import { foundingScript, script } from "./scripts.js";

/*
 * These scripts apply the rules of file/records/lease-state.ts by the clock of Redis, which all hosts share. A lease
 * ends when its key expires.
 *
 * A script without a commit key has the same effect whether it runs once or twice.
 */

/** Builds an answer with the lease in force. `lease` is the key of the lease. */
const ANSWER = `
local function answer(word, rank, lease)
  local f = redis.call('HMGET', lease, 'holder', 'fence', 'token', 'acquired', 'expires', 'ttl', 'steal', 'detached')
  return {word, rank, redis.call('PTTL', lease), f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8]}
end
`;

/**
 * KEYS[3] fence, [4] lease, [5] queue, [6] places. ARGV[5] hash of the token, [6] holder, [7] TTL (ms), [8] how long a place
 * is kept (ms), [9] '1' to take the lease from its holder, [10] the reason for taking it, [11] '1' if the new lease is
 * detached.
 *
 * The fence is higher than the last one and at least the current time, so that it grows even if Redis loses all data. Redis
 * writes numbers with 17 digits, which is enough for a time in milliseconds.
 */
export const ACQUIRE = foundingScript(`${ANSWER}${QUEUE}
local lease, queue, places, token = KEYS[4], KEYS[5], KEYS[6], ARGV[5]
local current = redis.call('HGET', lease, 'token')
if current == token then return answer('granted', 0, lease) end

local function grant()
  local fence = redis.call('INCR', KEYS[3])
  if fence < now then
    fence = now
    redis.call('SET', KEYS[3], now)
  end
  redis.call('DEL', lease)
  redis.call('HSET', lease, 'holder', ARGV[6], 'fence', fence, 'token', token,
    'acquired', now, 'expires', now + ARGV[7], 'ttl', ARGV[7])
  if current and ARGV[9] == '1' then redis.call('HSET', lease, 'steal', ARGV[10]) end
  if ARGV[11] == '1' then redis.call('HSET', lease, 'detached', '1') end
  redis.call('PEXPIRE', lease, ARGV[7])
  leave_queue(queue, places, token)
  return answer('granted', 0, lease)
end

if ARGV[9] == '1' then return grant() end

drop_silent(queue, places)
local ahead = redis.call('ZRANK', queue, token) or redis.call('ZCARD', queue)
if not current and ahead == 0 then return grant() end
keep_place(queue, places, token, tonumber(ARGV[8]))
return answer('waiting', ahead, lease)
`);

/** KEYS[3] queue, [4] places. ARGV[5] hash of the token. */
export const LEAVE = script(`${QUEUE}
leave_queue(KEYS[3], KEYS[4], ARGV[5])
return {'ok'}
`);

/**
 * KEYS[3] lease. ARGV[5] hash of the token, [6] TTL (ms). Sets the expiry first, because a full Redis permits this write.
 */
export const RENEW = script(`${ANSWER}
if redis.call('HGET', KEYS[3], 'token') ~= ARGV[5] then return {'lost'} end
redis.call('PEXPIRE', KEYS[3], ARGV[6])
redis.call('HSET', KEYS[3], 'ttl', ARGV[6], 'expires', now + ARGV[6])
return answer('granted', 0, KEYS[3])
`);

/** KEYS[3] lease, [4] commit key of this release. ARGV[5] hash of the token, [6] lifetime of the commit key (ms). */
export const RELEASE = script(`
local done = redis.call('GET', KEYS[4])
if done then return {done} end
if redis.call('HGET', KEYS[3], 'token') ~= ARGV[5] then return {'lost'} end
redis.call('DEL', KEYS[3])
redis.call('SET', KEYS[4], 'ok', 'PX', ARGV[6])
return {'ok'}
`);

/** KEYS[3] lease. */
export const LOOK = script(`${ANSWER}
return answer('seen', 0, KEYS[3])
`);

/** KEYS[3] fence. ARGV[5] the number that every later fence must exceed. */
export const RAISE = foundingScript(`
local fence = redis.call('GET', KEYS[3])
if not fence or tonumber(fence) < tonumber(ARGV[5]) then redis.call('SET', KEYS[3], ARGV[5]) end
return {'ok'}
`);
