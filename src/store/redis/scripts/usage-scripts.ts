import { foundingScript, script } from "./scripts.js";

/*
 * The ledger of all hosts. Each host sends its own lines in order. The script that counts lines also records in the
 * hash `usage-read` how far each segment has been counted, so a part that is sent twice counts once.
 *
 * Each hour has three keys:
 * - a list of its lines.
 * - a list with the sums of its minutes.
 * - a hash with the sums of the first lines: `lines` is the number of these lines, `hour` has the sums, and `cells` and
 *   `table` are the number and the id of the day's cells when the sums were made. After two days, the lines and the
 *   minutes are deleted, and the hash gets the field `old`.
 *
 * Each day has a hash with its cells. A cell is one combination of user, session, model and token. The rows of sums
 * refer to cells by number. The field `table` of the hash is a random id, by which a reader detects sums that refer to
 * other cells.
 *
 * The hashes of hours and days have a random `version`. It is replaced when the hash is changed, or when lines are
 * changed or deleted, so that no process saves sums of old lines.
 */

/** Defines `wrong`, which checks the type of a key. Its error names the key, unlike the error of a Redis command. */
const CHECK_TYPE = `
local function wrong(key, kind)
  local found = redis.call('TYPE', key).ok
  if found == 'none' or found == kind then return nil end
  return redis.error_reply('WRONGTYPE ' .. key .. ' is not a ' .. kind)
end
`;

/**
 * KEYS[3] usage-read, [4] usage-hours, [5] usage-lined, then for each hour of the part: sums, lines, and tokens of the day.
 * ARGV[5] the segment, [6] where the part begins, [7] where it ends, [8] its hours as JSON, [9] a number and [10] a share of
 * lines, [11] the version of new hours. Answers with three values: the position up to which the segment has been
 * counted; the hashes that have a field which is not a number; and the hours that are too far behind. An hour is too
 * far behind if the number of its lines that are not added up exceeds both [9] and the share [10] of those that are.
 *
 * If a command fails, Redis does not undo the earlier commands, and the host sends the part again. So the script checks
 * the types of the keys first, and no command after its first write can fail.
 */
export const COUNT_USAGE = foundingScript(`${CHECK_TYPE}
local wrongRead = wrong(KEYS[3], 'hash')
if wrongRead then return wrongRead end
local id, number = string.match(ARGV[5], '^(.*):(%d+)$')
if tonumber(number) < tonumber(redis.call('HGET', KEYS[3], id) or '0') then return {'at', ARGV[7], {}, {}} end
local at = redis.call('HGET', KEYS[3], ARGV[5]) or '0'
if at ~= ARGV[6] then return {'at', at, {}, {}} end
local problem = wrong(KEYS[4], 'zset') or wrong(KEYS[5], 'zset')
if problem then return problem end
local parts = cjson.decode(ARGV[8])
for index = 1, #parts do
  for offset, kind in ipairs({'hash', 'list', 'hash'}) do
    local problem = wrong(KEYS[2 + 3 * index + offset], kind)
    if problem then return problem end
  end
end
local damaged, behind = {}, {}
for index, part in ipairs(parts) do
  local sums, lines, tokens = KEYS[3 + 3 * index], KEYS[4 + 3 * index], KEYS[5 + 3 * index]
  redis.call('ZADD', KEYS[4], part.hour, part.hour)
  redis.call('ZADD', KEYS[5], part.hour, part.hour)
  local failed = false
  for _, each in ipairs(part.tokens) do
    local sum = redis.pcall('HINCRBYFLOAT', tokens, each[1], each[2])
    if type(sum) == 'table' then failed = true end
  end
  if failed then table.insert(damaged, tokens) end
  redis.call('PEXPIREAT', tokens, part.tokensUntil)
  redis.call('HSETNX', sums, 'version', ARGV[11])
  local length = 0
  for _, line in ipairs(part.lines) do length = redis.call('RPUSH', lines, line) end
  local added = tonumber(redis.call('HGET', sums, 'lines') or '0') or 0
  if length - added > math.max(ARGV[9], added * ARGV[10]) then table.insert(behind, part.hour) end
end
redis.call('HSET', KEYS[3], ARGV[5], ARGV[7])
return {'at', ARGV[7], damaged, behind}
`);

/** KEYS[3] usage-read. ARGV[5] the segment. */
export const USAGE_READ = script(`${CHECK_TYPE}
local problem = wrong(KEYS[3], 'hash')
if problem then return problem end
return {'at', redis.call('HGET', KEYS[3], ARGV[5]) or '0'}
`);

/**
 * KEYS[3] usage-read. ARGV[5] the segment, which was counted and deleted. Another process may still send lines that it
 * read from this segment or from an earlier one of the same folder. From now on, COUNT_USAGE ignores such lines.
 */
export const DROP_USAGE_READ = script(`
local id, number = string.match(ARGV[5], '^(.*):(%d+)$')
redis.call('HDEL', KEYS[3], ARGV[5])
if tonumber(number) >= tonumber(redis.call('HGET', KEYS[3], id) or '0') then
  redis.call('HSET', KEYS[3], id, string.format('%d', number + 1))
end
return {'ok'}
`);

/** KEYS[3] usage-hours or usage-lined. ARGV[5] the first hour, [6] the last hour. */
export const USAGE_HOURS = script(`${CHECK_TYPE}
local problem = wrong(KEYS[3], 'zset')
if problem then return problem end
local hours = redis.call('ZRANGEBYSCORE', KEYS[3], ARGV[5], ARGV[6])
table.insert(hours, 1, 'hours')
return hours
`);

/**
 * KEYS[3] the sums, [4] the minutes and [5] the lines of an hour. ARGV[5] 'true' to read the sums of the hour, [6]
 * 'true' to read the sums of its minutes. Answers with the fields that describe the sums, the sums of the hour, the
 * sums of its minutes, the number of parts of the minutes, and the number of lines.
 */
export const USAGE_HOUR = script(`${CHECK_TYPE}
local problem = wrong(KEYS[3], 'hash') or wrong(KEYS[4], 'list') or wrong(KEYS[5], 'list')
if problem then return problem end
local fields = redis.call('HMGET', KEYS[3], 'version', 'lines', 'cells', 'table', 'old')
for index = 1, 5 do fields[index] = fields[index] or '' end
fields[6] = redis.call('HSTRLEN', KEYS[3], 'hour')
local hour = ARGV[5] == 'true' and redis.call('HGET', KEYS[3], 'hour') or ''
local minutes = ARGV[6] == 'true' and redis.call('LRANGE', KEYS[4], 0, -1) or {}
return {'hour', fields, hour, minutes, redis.call('LLEN', KEYS[4]), redis.call('LLEN', KEYS[5])}
`);

/**
 * KEYS[3] the sums, [4] the minutes and [5] the lines of an hour. ARGV[5] "any" or "version", [6] the version, [7] and [8] the
 * first and the last index of lines. Answers with these lines, or `changed` if the hour has another version.
 */
export const USAGE_LINES = script(`
if ARGV[5] == 'version' and (redis.call('HGET', KEYS[3], 'version') or '') ~= ARGV[6] then return {'changed'} end
return {'lines', redis.call('LRANGE', KEYS[5], ARGV[7], ARGV[8])}
`);

/** KEYS[3] the cells of a day. Answers with the version, the id of the table, and the cells. */
export const USAGE_CELLS = script(`${CHECK_TYPE}
local problem = wrong(KEYS[3], 'hash')
if problem then return problem end
local version, id, cells = unpack(redis.call('HMGET', KEYS[3], 'version', 'table', 'cells'))
return {'cells', version or '', id or '', cells or ''}
`);

/**
 * KEYS[3] the sums and [4] the minutes of an hour, [5] the cells of its day. ARGV[5] and [6] the versions of the sums and of the
 * cells, [7] the next version, [8] the number of lines, [9] the sums of the hour, [10] the sums of the new lines by
 * minutes, [11] the number of cells, [12] the new cells. An old hour gets no sums of minutes, because these would cover
 * only its late lines.
 */
export const SAVE_SUMS = script(`
if redis.call('HGET', KEYS[3], 'version') ~= ARGV[5] then return {'changed'} end
if (redis.call('HGET', KEYS[5], 'version') or '') ~= ARGV[6] then return {'changed'} end
if redis.call('HEXISTS', KEYS[3], 'old') == 0 then redis.call('RPUSH', KEYS[4], ARGV[10]) end
redis.call('HSETNX', KEYS[5], 'table', ARGV[7])
local id = redis.call('HGET', KEYS[5], 'table')
redis.call('HSET', KEYS[3], 'version', ARGV[7], 'lines', ARGV[8], 'hour', ARGV[9], 'cells', ARGV[11], 'table', id)
if ARGV[12] ~= '' then
  redis.call('HSET', KEYS[5], 'version', ARGV[7], 'cells', (redis.call('HGET', KEYS[5], 'cells') or '') .. ARGV[12])
end
return {'saved'}
`);

/**
 * KEYS[3] the sums, [4] the minutes and [5] the lines of an hour, [6] usage-lined. ARGV[5] the hour, [6] the version, [7] the next
 * version. Deletes the lines and the minutes if all lines have been added up. The first write frees memory, so that a
 * full Redis runs the script.
 */
export const DROP_LINES = script(`
if redis.call('HGET', KEYS[3], 'version') ~= ARGV[6] then return {'changed'} end
if redis.call('LLEN', KEYS[5]) > tonumber(redis.call('HGET', KEYS[3], 'lines') or '0') then return {'behind'} end
redis.call('DEL', KEYS[4], KEYS[5])
redis.call('ZREM', KEYS[6], ARGV[5])
redis.call('HSET', KEYS[3], 'version', ARGV[7], 'lines', 0, 'old', 1)
return {'dropped'}
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

/** KEYS[3] the tokens of a day. ARGV[5], [6] and so on: alternately a name and the name that replaces it. */
export const RENAME_TOKENS = script(`${CHECK_TYPE}
local problem = wrong(KEYS[3], 'hash')
if problem then return problem end
for index = 5, #ARGV, 2 do
  local amount = redis.call('HGET', KEYS[3], ARGV[index])
  if amount then
    redis.call('HINCRBYFLOAT', KEYS[3], ARGV[index + 1], amount)
    redis.call('HDEL', KEYS[3], ARGV[index])
  end
end
return {'ok'}
`);

/**
 * KEYS[3] the sums, [4] the minutes and [5] the lines of an hour. ARGV[5] the next version, [6], [7], [8] and so on,
 * for each line: its index, the line, and the line that replaces it.
 */
export const RENAME_LINES = script(`
for index = 6, #ARGV, 3 do
  if redis.call('LINDEX', KEYS[5], ARGV[index]) == ARGV[index + 1] then
    redis.call('LSET', KEYS[5], ARGV[index], ARGV[index + 2])
    redis.call('HSET', KEYS[3], 'version', ARGV[5])
  end
end
return {'ok'}
`);

/** KEYS[3] the cells of a day. ARGV[5] the version, [6] the next version, [7] all cells. */
export const RENAME_CELLS = script(`
if (redis.call('HGET', KEYS[3], 'version') or '') ~= ARGV[5] then return {'changed'} end
redis.call('HSET', KEYS[3], 'version', ARGV[6], 'cells', ARGV[7])
return {'saved'}
`);

/**
 * KEYS[3] usage-hours, [4] usage-lined, [5] the sums, [6] the minutes and [7] the lines of an hour, [8] the cells of its day.
 * ARGV[5] the hour, [6] and [7] the first and the last hour of the day.
 */
export const DROP_USAGE = script(`
redis.call('DEL', KEYS[5], KEYS[6], KEYS[7])
redis.call('ZREM', KEYS[3], ARGV[5])
redis.call('ZREM', KEYS[4], ARGV[5])
if redis.call('ZCOUNT', KEYS[3], ARGV[6], ARGV[7]) == 0 then redis.call('DEL', KEYS[8]) end
return {'ok'}
`);
