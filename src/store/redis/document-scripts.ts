import { PASS_ON } from "./queue-lua.js";
import { foundingScript, script } from "./scripts.js";

/*
 * Documents begin with a line of their own: schema, revision, and the random id of the commit that made them. Comparing
 * that line is the compare of compare-and-set. The id in it keeps a record that was deleted and made anew apart from the
 * old one, whose revisions had the same numbers.
 *
 * KEYS[4] is the mark of this commit. It comes into being together with what the commit changes, so a writer whom the
 * answer did not reach sends the very same command again: it finds the mark, or it is the first to arrive.
 */

/**
 * ARGV[5]: the line that the document has to begin with, empty if there must be none. [6] the new document, [7] how long
 * the mark stays (ms), [8] the member to add to the set KEYS[5], or empty, [9] whose turn ends with this, or empty.
 * KEYS[6] to [8] are the turn's, as in writer-lock-scripts.ts; ARGV[10] how long the next one lasts (ms). KEYS[9] is another set that
 * gets the member, if there is one.
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
 * ARGV[5]: as above, or `*` for any document. [6] how long the mark stays (ms), [7] the member to remove from the set
 * KEYS[5]. KEYS[6] and on are removed with the document, and also without one; the last of them loses the member instead if
 * ARGV[8] is '1'.
 *
 * The deletions come first: Redis refuses a script whose first write wants memory when it has none, and no later one.
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

/** Answers `count` with the size of the set KEYS[3]. */
export const COUNT = script("return {'count', redis.call('SCARD', KEYS[3])}");
