import {
  countsOf,
  dayOf,
  hourOf,
  keyOf,
  type LedgerLine,
  type UsageCounts,
  type UsagePart,
  UsageParts,
  type UsageQuery,
} from "../../base/usage.js";
import type { Renaming } from "../usage.js";
import type { Connection } from "./connection.js";
import { foundingScript, script } from "./scripts.js";

/*
 * The ledger of a fleet that shares a Redis. The names of users and sessions stand only in two hashes. Everything else
 * has their numbers, so a purge changes the entries of each name, and no line. After that, the same name gets a new
 * number.
 *
 * Each hour has a hash of its lines, so that a line that is sent twice counts once, and a hash of their sums. Each day
 * has a hash with the tokens of each user.
 */

/**
 * KEYS[2] the number of each name, [3] the name of each number, [4] the last hour of each number, [5] the hours, [6]
 * the hours of which there are lines, and for each hour of the new lines, from [7] on: its lines, its sums, and the
 * tokens of its day. ARGV[4] the lines as JSON.
 */
const APPEND = foundingScript(`
local function number_of(name, hour)
  local number = redis.call('HGET', KEYS[2], name)
  if not number then
    number = tostring(redis.call('HINCRBY', KEYS[2], '', 1))
    redis.call('HSET', KEYS[2], name, number)
    redis.call('HSET', KEYS[3], number, name)
  end
  redis.call('ZADD', KEYS[4], 'GT', hour, number)
  return number
end

for _, line in ipairs(cjson.decode(ARGV[4])) do
  local lines, sums, tokens = KEYS[line.key], KEYS[line.key + 1], KEYS[line.key + 2]
  if redis.call('HEXISTS', lines, line.id) == 0 then
    local user, session = number_of(line.user, line.hour), number_of(line.session, line.hour)
    local cell = cjson.encode({user, session, line.model, line.token})
    redis.call('HSET', lines, line.id, cjson.encode({line.at, cell, line.counts}))
    local before = redis.call('HGET', sums, cell)
    local total = before and cjson.decode(before) or line.counts
    if before then
      for index, count in ipairs(line.counts) do
        if total[index] == cjson.null then total[index] = count
        elseif count ~= cjson.null then total[index] = total[index] + count end
      end
    end
    redis.call('HSET', sums, cell, cjson.encode(total))
    redis.call('ZADD', KEYS[5], line.hour, line.hour)
    redis.call('ZADD', KEYS[6], line.hour, line.hour)
    if line.tokens > 0 then redis.call('HINCRBY', tokens, user, line.tokens) end
  end
end
return {'ok'}
`);

/** KEYS[2] hours. ARGV[4] the first and [5] the last hour. */
const HOURS = script("return {'hours', unpack(redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[4], ARGV[5]))}");

/** KEYS[2] and later: hashes. Answers the fields and values of each. */
const ALL = script(`
local answer = {'all'}
for index = 2, #KEYS do answer[#answer + 1] = redis.call('HGETALL', KEYS[index]) end
return answer
`);

/** KEYS[2] a hash. ARGV[4] and later: fields. Answers the value of each. */
const SOME = script(`
local fields = {}
for index = 4, #ARGV do fields[#fields + 1] = ARGV[index] end
return {'some', unpack(redis.call('HMGET', KEYS[2], unpack(fields)))}
`);

/** KEYS[2] and [3] as in APPEND. ARGV[4] and later: pairs of a name and its new name. */
const RENAME = script(`
for index = 4, #ARGV, 2 do
  local number = redis.call('HGET', KEYS[2], ARGV[index])
  if number then
    redis.call('HDEL', KEYS[2], ARGV[index])
    redis.call('HSETNX', KEYS[2], ARGV[index + 1], number)
    redis.call('HSET', KEYS[3], number, ARGV[index + 1])
  end
end
return {'ok'}
`);

/** KEYS[2] hours of which there are lines, and later keys: lines to delete. ARGV[4] the first hour whose lines stay. */
const FORGET_LINES = script(`
for index = 3, #KEYS do redis.call('DEL', KEYS[index]) end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[4])
return {'ok'}
`);

/** KEYS[2] to [5] as in APPEND, and later keys: what to delete. ARGV[4] the first hour that stays. */
const TRIM = script(`
for index = 6, #KEYS do redis.call('DEL', KEYS[index]) end
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', '(' .. ARGV[4])
for _, number in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[4])) do
  local name = redis.call('HGET', KEYS[3], number)
  if name and redis.call('HGET', KEYS[2], name) == number then redis.call('HDEL', KEYS[2], name) end
  redis.call('HDEL', KEYS[3], number)
  redis.call('ZREM', KEYS[4], number)
end
return {'ok'}
`);

/** How many hours, names or lines one script works on. */
const AT_ONCE = 100;
const HOUR_MS = 3_600_000;
/** How long lines are kept, in hours. Later, only the sums of their hour are. */
const LINES_HOURS = 48;
/** The order of the counts of a line and of a sum. */
const COUNTS = ["turns", "requests", "inputTokens", "outputTokens", "cacheReadTokens", "credits"] as const;

type Cell = [user: string, session: string, model: string | null, token: string | null];

export class RedisLedger {
  readonly #connection: Connection;
  readonly #prefix: string;
  /** The keys with which {@link APPEND} and {@link TRIM} begin. */
  readonly #common: readonly string[];

  /** @param prefix as `keyPrefix` returns it */
  constructor(connection: Connection, prefix: string) {
    this.#connection = connection;
    this.#prefix = `${prefix}ledger-`;
    this.#common = ["numbers", "names", "last", "hours", "lined"].map((name) => this.#prefix + name);
  }

  /** Appends lines. A line that is already there, by its id and whether it is the first half, counts only once. */
  async append(lines: readonly LedgerLine[]): Promise<void> {
    for (let at = 0; at < lines.length; at += AT_ONCE) {
      const part = lines.slice(at, at + AT_ONCE);
      const hours = [...new Set(part.map((line) => hourOf(line.at)))];
      const sent = part.map((line) => {
        const hour = hourOf(line.at);
        const counts = countsOf(line);
        return {
          // The first key is that of every script.
          key: 2 + this.#common.length + 3 * hours.indexOf(hour),
          id: `${line.outcome === "begun" ? "b" : "e"}${line.id}`,
          at: Date.parse(line.at),
          hour,
          user: named("user", line.user),
          session: named("session", line.sessionId),
          model: line.model,
          token: line.tokenId,
          counts: COUNTS.map((count) => counts[count]),
          tokens: (line.inputTokens ?? 0) + (line.outputTokens ?? 0),
        };
      });
      const keys = [...this.#common, ...hours.flatMap((hour) => this.#keysOf(hour))];
      await this.#connection.run(APPEND, keys, [JSON.stringify(sent)]);
    }
  }

  /**
   * Adds up the lines from `from` until before `to`: whole hours by their sums, and the rest line by line. Hours of
   * which there are no more lines count as a whole.
   */
  async read({ from, to, by, user }: UsageQuery): Promise<UsagePart[]> {
    const found: { cell: string; at: number; counts: (number | null)[] }[] = [];
    const [first, last] = [Math.floor(from / HOUR_MS), Math.floor((to - 1) / HOUR_MS)];
    const hours = await this.#hours("hours", first, last);
    const lined = new Set(await this.#hours("lined", first, last));
    const isWhole = (hour: number) => !lined.has(hour) || (hour * HOUR_MS >= from && (hour + 1) * HOUR_MS <= to);
    const whole = hours.filter(isWhole);
    await this.#eachField(
      whole.map((hour) => this.#keysOf(hour)[1] ?? ""),
      (index, cell, text) => {
        found.push({ cell, at: (whole[index] ?? 0) * HOUR_MS, counts: JSON.parse(text) as (number | null)[] });
      },
    );
    const partly = hours.filter((hour) => !isWhole(hour));
    await this.#eachField(
      partly.map((hour) => this.#keysOf(hour)[0] ?? ""),
      (_, __, text) => {
        const [at, cell, counts] = JSON.parse(text) as [number, string, (number | null)[]];
        if (at >= from && at < to) found.push({ cell, at, counts });
      },
    );
    const cells = new Map<string, Cell>();
    for (const { cell } of found) if (!cells.has(cell)) cells.set(cell, JSON.parse(cell) as Cell);
    const numbers = [...cells.values()].flatMap(([one, session]) => (by === "session" ? [one, session] : [one]));
    const names = await this.#namesOf([...new Set(numbers)]);
    const parts = new UsageParts(user);
    for (const { cell, at, counts } of found) {
      const [one = "", session = "", model = null, tokenId = null] = cells.get(cell) ?? [];
      const line = { user: names.get(one) ?? "", sessionId: names.get(session) ?? "", model, tokenId };
      const key = keyOf({ ...line, at: by === "day" ? dayOf(at) : "" }, by);
      parts.add(key, line.user, model, countsFrom(counts));
    }
    return parts.all;
  }

  /** The input and output tokens of a user since the start of a day, in milliseconds since the epoch. */
  async tokensSince(user: string, from: number): Promise<number> {
    const [number = null] = await this.#some(this.#common[0] ?? "", [named("user", user)]);
    if (number === null) return 0;
    let tokens = 0;
    for (let at = from; at < Date.now() + 24 * HOUR_MS; at += 24 * HOUR_MS) {
      const [count = null] = await this.#some(this.#tokensOf(at), [number]);
      tokens += Number(count ?? 0);
    }
    return tokens;
  }

  /** Gives users and sessions other names, everywhere. */
  async rename({ users, sessions }: Renaming): Promise<void> {
    const pairs = [
      ...[...users].flatMap(([name, other]) => [named("user", name), named("user", other)]),
      ...[...sessions].flatMap(([name, other]) => [named("session", name), named("session", other)]),
    ];
    for (let at = 0; at < pairs.length; at += 2 * AT_ONCE)
      await this.#connection.run(RENAME, this.#common.slice(0, 2), pairs.slice(at, at + 2 * AT_ONCE));
  }

  /** Deletes old lines, and the sums of the hours before a time, in milliseconds since the epoch. */
  async deleteBefore(time: number): Promise<void> {
    await this.#forgetLines(Math.floor(Date.now() / HOUR_MS) - LINES_HOURS);
    const first = Math.floor(time / HOUR_MS);
    const old = await this.#hours("hours", 0, first - 1);
    for (let at = 0; at < old.length; at += AT_ONCE) {
      const part = old.slice(at, at + AT_ONCE);
      const stays = at + AT_ONCE < old.length ? (old[at + AT_ONCE] ?? first) : first;
      await this.#connection.run(
        TRIM,
        [...this.#common.slice(0, 4), ...part.flatMap((hour) => this.#keysOf(hour).slice(0, 2))],
        [stays],
      );
    }
  }

  /** @param first the first hour whose lines stay */
  async #forgetLines(first: number): Promise<void> {
    const old = await this.#hours("lined", 0, first - 1);
    for (let at = 0; at < old.length; at += AT_ONCE) {
      const part = old.slice(at, at + AT_ONCE);
      const lines = part.map((hour) => this.#keysOf(hour)[0] ?? "");
      await this.#connection.run(FORGET_LINES, [`${this.#prefix}lined`, ...lines], [(part.at(-1) ?? 0) + 1]);
    }
  }

  async #hours(set: "hours" | "lined", first: number, last: number): Promise<number[]> {
    const [, ...hours] = await this.#connection.run(HOURS, [this.#prefix + set], [first, last]);
    return hours.map(Number);
  }

  async #eachField(keys: readonly string[], use: (index: number, field: string, value: string) => void): Promise<void> {
    for (let at = 0; at < keys.length; at += AT_ONCE) {
      const [, ...hashes] = await this.#connection.run(ALL, keys.slice(at, at + AT_ONCE), []);
      for (const [index, fields] of (hashes as string[][]).entries())
        for (let field = 0; field < fields.length; field += 2)
          use(at + index, fields[field] ?? "", fields[field + 1] ?? "");
    }
  }

  async #namesOf(numbers: readonly string[]): Promise<Map<string, string>> {
    const names = new Map<string, string>();
    for (let at = 0; at < numbers.length; at += 10 * AT_ONCE) {
      const part = numbers.slice(at, at + 10 * AT_ONCE);
      for (const [index, name] of (await this.#some(this.#common[1] ?? "", part)).entries())
        names.set(part[index] ?? "", name?.slice(name.indexOf(":") + 1) ?? "");
    }
    return names;
  }

  async #some(key: string, fields: readonly string[]): Promise<(string | null)[]> {
    const [, ...values] = await this.#connection.run(SOME, [key], fields);
    return fields.map((_, index) => (values[index] ?? null) as string | null);
  }

  #keysOf(hour: number): string[] {
    return [`${this.#prefix}lines:${hour}`, `${this.#prefix}sums:${hour}`, this.#tokensOf(hour * HOUR_MS)];
  }

  #tokensOf(time: number): string {
    return `${this.#prefix}tokens:${dayOf(time)}`;
  }
}

/** The name of a user or a session in the hashes. A user and a session may have the same name. */
function named(kind: "user" | "session", name: string): string {
  return `${kind}:${name}`;
}

function countsFrom(counts: readonly (number | null)[]): UsageCounts {
  return Object.fromEntries(COUNTS.map((count, index) => [count, counts[index] ?? null])) as unknown as UsageCounts;
}
