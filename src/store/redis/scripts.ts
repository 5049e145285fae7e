import { createHash } from "node:crypto";

/** A Lua script. Redis runs it as one atomic step (redis.io, "EVAL"). */
export interface Script {
  lua: string;
  /** Redis stores scripts under this hash. */
  sha: string;
  /** Whether the script creates the fleet in an empty database. */
  founds: boolean;
}

/** The number of keys with which every script begins: the epoch and the registry. */
export const COMMON_KEYS = 2;

/**
 * The beginning of every script. `ARGV[1]` is the expected epoch. `ARGV[2]` is the time at which the caller gives up, by the
 * clock of Redis. After that time a script does nothing, because the caller has already reported its failure.
 *
 * Every answer is an array that begins with a word. The beginning answers `late` with the time, `epoch` with the epoch in
 * the database, `orphan` for a registry without an epoch, or `gone` for an epoch without a registry.
 */
const PRELUDE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[2]) then return {'late', now} end
local epoch = redis.call('GET', KEYS[1])
if (epoch or '') ~= ARGV[1] then return {'epoch', epoch or ''} end
local registry = redis.call('EXISTS', KEYS[2]) == 1
if registry and not epoch then return {'orphan'} end
if epoch and not registry then return {'gone'} end
`;

/** Creates the epoch and the registry together. So if only one of them exists later, Redis has lost data. */
const FOUND = `
if not epoch then
  redis.call('SET', KEYS[1], ARGV[3])
  redis.call('SET', KEYS[2], ARGV[4])
end
`;

export function script(body: string): Script {
  return make(PRELUDE + body, false);
}

/** Makes a script that may be the first to write to a database. */
export function foundingScript(body: string): Script {
  return make(PRELUDE + FOUND + body, true);
}

/** Answers `now` with the time of Redis (ms). */
export const TELL_TIME = script("return {'now', now}");

function make(lua: string, founds: boolean): Script {
  return { lua, sha: createHash("sha1").update(lua).digest("hex"), founds };
}

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
