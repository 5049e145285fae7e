/**
 * A queue of waiting tokens in two sorted sets: by arrival, and by the time at which a token loses its place. To keep
 * its place, a waiter asks again. To save writes, the script stores the new time only after a third of `keep_ms` has
 * passed.
 */
export const QUEUE = `
local function drop_silent(queue, places)
  for _, silent in ipairs(redis.call('ZRANGEBYSCORE', places, '-inf', now)) do
    redis.call('ZREM', queue, silent)
    redis.call('ZREM', places, silent)
  end
end

local function keep_place(queue, places, token, keep_ms)
  local rank = redis.call('ZRANK', queue, token)
  local place = redis.call('ZSCORE', places, token)
  if rank and place and place - now >= keep_ms * 2 / 3 then return end
  if not rank then
    local last = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')
    redis.call('ZADD', queue, (last[2] or 0) + 1, token)
  end
  redis.call('ZADD', places, now + keep_ms, token)
  local latest = redis.call('ZRANGE', places, -1, -1, 'WITHSCORES')[2]
  redis.call('PEXPIREAT', queue, latest)
  redis.call('PEXPIREAT', places, latest)
end

local function leave_queue(queue, places, token)
  redis.call('ZREM', queue, token)
  redis.call('ZREM', places, token)
end
`;

/**
 * Gives the writer lock of the registry to the next waiter, and publishes the registry on that waiter's channel. Access
 * rules may forbid channels, so an error of PUBLISH is ignored (pcall). A waiter without a message polls.
 */
export const PASS_ON = `${QUEUE}
local function pass_on(lock, queue, places, token, lock_ms, registry)
  local holder = redis.call('GET', lock)
  if holder and holder ~= token then return end
  drop_silent(queue, places)
  local next = redis.call('ZRANGE', queue, 0, 0)[1]
  if not next then
    redis.call('DEL', lock)
    return
  end
  leave_queue(queue, places, next)
  redis.call('SET', lock, next, 'PX', lock_ms)
  redis.pcall('PUBLISH', lock .. ':' .. next, registry)
end
`;
