import { PASS_ON, QUEUE } from "./queue-lua.js";
import { script } from "./scripts.js";

/**
 * KEYS[3] writer lock, [4] queue, [5] places, [6] registry. ARGV[5] token, [6] lifetime of the lock (ms), [7] how long a
 * place is kept (ms). Answers `taken` with the registry, or `wait` with the number of writers before this one.
 */
export const TAKE_WRITER_LOCK = script(`${QUEUE}
local holder, token = redis.call('GET', KEYS[3]), ARGV[5]
if holder ~= token then
  drop_silent(KEYS[4], KEYS[5])
  local ahead = redis.call('ZRANK', KEYS[4], token) or redis.call('ZCARD', KEYS[4])
  if holder or ahead > 0 then
    keep_place(KEYS[4], KEYS[5], token, tonumber(ARGV[7]))
    return {'wait', ahead}
  end
  leave_queue(KEYS[4], KEYS[5], token)
end
redis.call('SET', KEYS[3], token, 'PX', ARGV[6])
return {'taken', redis.call('GET', KEYS[6])}
`);

/**
 * KEYS[3] writer lock, [4] queue, [5] places, [6] registry. ARGV[5] token, [6] lifetime of the next writer's lock (ms).
 */
export const LEAVE_WRITER_LOCK = script(`${PASS_ON}
leave_queue(KEYS[4], KEYS[5], ARGV[5])
pass_on(KEYS[3], KEYS[4], KEYS[5], ARGV[5], ARGV[6], redis.call('GET', KEYS[6]) or '')
return {'ok'}
`);
