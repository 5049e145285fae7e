/**
 * A queue in two sorted sets of waiting tokens: by arrival, and by the time at which a place is lost. A place is kept by
 * asking again, which is written down only when a third of its time is over.
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
