import { foundingScript, script } from "./scripts.js";

/*
 * The ledger of all hosts: sums by hour, and the lines of the last hours. Each host sends its own lines in order. The hash
 * `usage-read` records how far each host's lines have been counted, in the same step, so a part that is sent twice counts
 * once.
 */

/** Finds a key of another type before a command fails because of it, so that the error names the key. */
const CHECK_TYPE = `
local function wrong(key, kind)
  local found = redis.call('TYPE', key).ok
  if found == 'none' or found == kind then return nil end
  return redis.error_reply('WRONGTYPE ' .. key .. ' is not a ' .. kind)
end
`;

/**
 * KEYS[3] usage-read, [4] usage-hours, then for each hour of the part: sums, lines, and tokens of the day. ARGV[5] the
 * segment, [6] where the part begins, [7] where it ends, [8] its hours as JSON. Answers with the position up to which the
 * segment has been counted, and with the hashes that have a field which is not a number.
 *
 * A command that fails undoes nothing, and the part is sent again. So the script checks the types of the keys first, and
 * no command after its first write can fail.
 */
export const COUNT_USAGE = foundingScript(`${CHECK_TYPE}
local id, number = string.match(ARGV[5], '^(.*):(%d+)$')
if tonumber(number) < tonumber(redis.call('HGET', KEYS[3], id) or '0') then return {'at', ARGV[7]} end
local at = redis.call('HGET', KEYS[3], ARGV[5]) or '0'
if at ~= ARGV[6] then return {'at', at} end
local parts = cjson.decode(ARGV[8])
for index = 1, #parts do
  for offset, kind in ipairs({'hash', 'list', 'hash'}) do
    local problem = wrong(KEYS[1 + 3 * index + offset], kind)
    if problem then return problem end
  end
end
local answer = {'at', ARGV[7]}
local function add(key, amounts)
  local failed = false
  for _, each in ipairs(amounts) do
    local sum = redis.pcall('HINCRBYFLOAT', key, each[1], each[2])
    if type(sum) == 'table' then failed = true end
  end
  if failed then table.insert(answer, key) end
end
for index, part in ipairs(parts) do
  local sums, lines, tokens = KEYS[2 + 3 * index], KEYS[3 + 3 * index], KEYS[4 + 3 * index]
  redis.call('ZADD', KEYS[4], part.hour, part.hour)
  add(sums, part.sums)
  add(tokens, part.tokens)
  for _, line in ipairs(part.lines) do redis.call('RPUSH', lines, line) end
  redis.call('PEXPIREAT', lines, part.linesUntil)
  redis.call('PEXPIREAT', tokens, part.tokensUntil)
end
redis.call('HSET', KEYS[3], ARGV[5], ARGV[7])
return answer
`);

/** KEYS[3] usage-read. ARGV[5] the segment. */
export const USAGE_READ = script(`return {'at', redis.call('HGET', KEYS[3], ARGV[5]) or '0'}`);

/**
 * KEYS[3] usage-read. ARGV[5] the segment, which was counted and deleted. Its number becomes the end of those of its folder
 * that are counted no more, because another process may still have read lines of the segment.
 */
export const DROP_USAGE_READ = script(`
local id, number = string.match(ARGV[5], '^(.*):(%d+)$')
redis.call('HDEL', KEYS[3], ARGV[5])
if tonumber(number) >= tonumber(redis.call('HGET', KEYS[3], id) or '0') then
  redis.call('HSET', KEYS[3], id, string.format('%d', number + 1))
end
return {'ok'}
`);

/** KEYS[3] usage-hours. ARGV[5] the first hour, [6] the last hour. */
export const USAGE_HOURS = script(`
local hours = redis.call('ZRANGEBYSCORE', KEYS[3], ARGV[5], ARGV[6])
table.insert(hours, 1, 'hours')
return hours
`);

/** KEYS[3] the sums of an hour. Answers with names and numbers by turns. */
export const USAGE_SUMS = script(`${CHECK_TYPE}
local problem = wrong(KEYS[3], 'hash')
if problem then return problem end
local sums = redis.call('HGETALL', KEYS[3])
table.insert(sums, 1, 'sums')
return sums
`);

/** KEYS[3] the lines of an hour. */
export const USAGE_LINES = script(`${CHECK_TYPE}
local problem = wrong(KEYS[3], 'list')
if problem then return problem end
local lines = redis.call('LRANGE', KEYS[3], 0, -1)
table.insert(lines, 1, 'lines')
return lines
`);

/** KEYS[3] and later keys: the tokens of days. ARGV[5] the user. */
export const USAGE_TOKENS = script(`${CHECK_TYPE}
local tokens = 0
for index = 3, #KEYS do
  local problem = wrong(KEYS[index], 'hash')
  if problem then return problem end
  tokens = tokens + (tonumber(redis.call('HGET', KEYS[index], ARGV[5])) or 0)
end
return {'tokens', tokens}
`);

/** KEYS[3] a hash of sums. ARGV[5], [6] and so on: a name and the name that replaces it, by turns. */
export const RENAME_USAGE = script(`
for index = 5, #ARGV, 2 do
  local amount = redis.call('HGET', KEYS[3], ARGV[index])
  if amount then
    redis.call('HINCRBYFLOAT', KEYS[3], ARGV[index + 1], amount)
    redis.call('HDEL', KEYS[3], ARGV[index])
  end
end
return {'ok'}
`);

/** KEYS[3] the lines of an hour. ARGV[5], [6], [7] and so on: an index, the line there, and the line that replaces it. */
export const RENAME_LINES = script(`
for index = 5, #ARGV, 3 do
  if redis.call('LINDEX', KEYS[3], ARGV[index]) == ARGV[index + 1] then
    redis.call('LSET', KEYS[3], ARGV[index], ARGV[index + 2])
  end
end
return {'ok'}
`);

/** KEYS[3] usage-hours, [4] the sums, and [5] the lines of an hour. ARGV[5] the hour. */
export const DROP_USAGE = script(`
redis.call('DEL', KEYS[4], KEYS[5])
redis.call('ZREM', KEYS[3], ARGV[5])
return {'ok'}
`);
