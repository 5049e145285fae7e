import { PASS_ON } from "./queue-lua.js";
import { foundingScript, script } from "./scripts.js";

/*
 * A document begins with a header line: schema, revision, and the random id of the commit that wrote it. A commit
 * compares this line before it sets the document. The id is necessary because a record that was deleted and created
 * again has the same revision numbers as before.
 *
 * KEYS[3] is the document. KEYS[4] is the commit key, which the script creates together with its changes. A writer that
 * gets no answer sends the same command again. The second command does nothing if it finds the commit key.
 */

/**
 * ARGV[5] header line that the document must have, or empty if there must be no document, [6] new document, [7] lifetime of
 * the commit key (ms), [8] member to add to the set KEYS[5], or empty, [9] token of the writer that releases the writer
 * lock, or empty, [10] lifetime of the next writer's lock (ms). KEYS[6] to [8] are the keys of the writer lock, as in
 * writer-lock-scripts.ts. KEYS[9] is optional. It is a second set to which the member is added.
 */
export const COMMIT = foundingScript(`${PASS_ON}
local done = redis.call('GET', KEYS[4])
if done then return {done} end
local head = ARGV[5]
if head == '' then
  if redis.call('EXISTS', KEYS[3]) == 1 then return {'conflict'} end
elseif redis.call('GETRANGE', KEYS[3], 0, #head - 1) ~= head then
  return {'conflict'}
end
redis.call('SET', KEYS[3], ARGV[6])
redis.call('SET', KEYS[4], 'ok', 'PX', ARGV[7])
if ARGV[8] ~= '' then redis.call('SADD', KEYS[5], ARGV[8]) end
if KEYS[9] then redis.call('SADD', KEYS[9], ARGV[8]) end
if ARGV[9] ~= '' then pass_on(KEYS[6], KEYS[7], KEYS[8], ARGV[9], ARGV[10], ARGV[6]) end
return {'ok'}
`);

/**
 * ARGV[5] header line that the document must have, or `*` for any, [6] lifetime of the commit key (ms), [7] member to
 * remove from the set KEYS[5], [8] '1' to remove it also from a second set, which is the last key. All other keys from
 * KEYS[6] on are deleted too, even if there is no document.
 *
 * The deletions come first, because a full Redis refuses a script whose first write needs memory.
 */
export const REMOVE = script(`
local done = redis.call('GET', KEYS[4])
if done then return {done} end
local head = ARGV[5]
local there = redis.call('EXISTS', KEYS[3]) == 1
if head ~= '*' then
  if not there then return {'absent'} end
  if redis.call('GETRANGE', KEYS[3], 0, #head - 1) ~= head then return {'conflict'} end
end
local last = #KEYS - tonumber(ARGV[8])
for index = 6, last do redis.call('DEL', KEYS[index]) end
if last < #KEYS then redis.call('SREM', KEYS[#KEYS], ARGV[7]) end
redis.call('SREM', KEYS[5], ARGV[7])
if not there then return {'absent'} end
redis.call('DEL', KEYS[3])
redis.call('SET', KEYS[4], 'ok', 'PX', ARGV[6])
return {'ok'}
`);

/** Sets KEYS[4] to ARGV[5] if the document KEYS[3] exists. */
export const NOTE = script(`
if redis.call('EXISTS', KEYS[3]) == 0 then return {'absent'} end
redis.call('SET', KEYS[4], ARGV[5])
return {'ok'}
`);

export const COUNT = script("return {'count', redis.call('SCARD', KEYS[3])}");
