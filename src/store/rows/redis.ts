import { SCHEMA } from "../../base/server.js";
import type { Connection } from "../redis/connection.js";
import { COMMIT_KEY_MS, type Documents, newId, parseObject } from "../redis/documents.js";
import { foundingScript, script, TELL_TIME } from "../redis/scripts.js";
import type { Changes, Kind, Row, Rows, Selection } from "./rows.js";

/*
 * A row is a text under its own key. It begins with a header line: schema, revision, the random id of the commit that wrote it,
 * and its signature. A commit compares this line before it replaces the row. The id is necessary because a row that was
 * deleted and created again has the same revisions as before.
 *
 * The ids of all rows of a kind, and those under each value of an index, are sorted sets in which all scores are 0. So Redis
 * sorts them by their bytes (redis.io, "ZRANGEBYLEX").
 */

/**
 * KEYS[3] the commit key, which exists for a while after a commit. A writer that gets no answer sends the same command again.
 * The second command does nothing if it finds the commit key. KEYS[4] and later: rows and sets. ARGV[5] lifetime of the commit
 * key (ms), [6] '1' if the commit must succeed on a full Redis, [7] the changes as JSON. Each has the number of the row's key,
 * the header that the row must have (empty: there must be no row), the new text or null, its end (ms since the epoch, or null), and
 * the numbers of the sets to which the id is added and from which it is removed.
 *
 * A full Redis refuses a script whose first write needs memory. So a vital commit first deletes what does not exist.
 */
const COMMIT = foundingScript(`
local done = redis.call('GET', KEYS[3])
if done then return {done} end
local changes = cjson.decode(ARGV[7])
for _, change in ipairs(changes) do
  local key, head = KEYS[change.key], change.head
  if head == '' then
    if redis.call('EXISTS', key) == 1 then return {'conflict'} end
  elseif redis.call('GETRANGE', key, 0, #head - 1) ~= head then
    return {'conflict'}
  end
end
if ARGV[6] == '1' then redis.call('DEL', KEYS[3]) end
for _, change in ipairs(changes) do
  local key = KEYS[change.key]
  if change.text == cjson.null then
    redis.call('DEL', key)
  elseif change.ends == cjson.null then
    redis.call('SET', key, change.text)
  else
    redis.call('SET', key, change.text, 'PXAT', string.format('%.0f', change.ends))
  end
  for _, set in ipairs(change.removed) do redis.call('ZREM', KEYS[set], change.id) end
  for _, set in ipairs(change.added) do redis.call('ZADD', KEYS[set], 0, change.id) end
end
redis.call('SET', KEYS[3], 'ok', 'PX', ARGV[5])
return {'ok'}
`);

/** KEYS[3] a set. ARGV[5] the first id ('-' or '(' and the id before it), [6] the most ids, or -1. */
const IDS = script("return {'ids', unpack(redis.call('ZRANGEBYLEX', KEYS[3], ARGV[5], '+', 'LIMIT', 0, ARGV[6]))}");
const COUNT = script("return {'count', redis.call('ZCARD', KEYS[3])}");

/** How many ids one answer contains. Lua cannot return many more values. */
const AT_ONCE = 1_000;

/** Rows in a Redis database, which many hosts may share. */
export class RedisRows implements Rows {
  readonly #documents: Documents;
  readonly #connection: Connection;
  /** The beginning of all keys. */
  readonly #prefix: string;

  constructor(documents: Documents, fleet: string) {
    this.#documents = documents;
    this.#connection = documents.connection;
    // The braces put all keys into one hash slot (Redis Cluster specification), so that a script may use several of them.
    this.#prefix = `copilotfleet:{${fleet}}:`;
  }

  async read<T extends object>(kind: Kind<T>, ids: readonly string[]): Promise<(Row<T> | null)[]> {
    const keys = ids.map((id) => this.#keyOf(kind, id));
    const documents = await this.#documents.read(keys);
    return documents.map((found, index) => {
      const [id = "", key = ""] = [ids[index], keys[index]];
      return found && { id, version: found.head, record: parseObject<T>(key, found.data) };
    });
  }

  async commit(changes: Changes): Promise<boolean> {
    const commit = newId();
    const keys = [`${this.#prefix}commit:${commit}`];
    const numberOf = (key: string) => {
      const known = keys.indexOf(key);
      // The first two keys are those of every script.
      return 3 + (known === -1 ? keys.push(key) - 1 : known);
    };
    const listed = changes.map(({ kind, id, from, to }) => {
      const key = this.#keyOf(kind, id);
      const setsOf = (record: object | null) => (record === null ? [] : this.#setsOf(kind, record));
      const [before, after] = [setsOf(from?.record ?? null), setsOf(to)];
      return {
        key: numberOf(key),
        id,
        head: from?.version ?? "",
        text: to && this.#textOf(key, commit, from, to),
        ends: to && kind.endsAt(to),
        removed: before.filter((set) => !after.includes(set)).map(numberOf),
        added: after.filter((set) => from === null || !before.includes(set)).map(numberOf),
      };
    });
    const isVital = changes.some(({ kind }) => kind.isVital);
    const args = [COMMIT_KEY_MS, isVital ? "1" : "0", JSON.stringify(listed)];
    const [word] = await this.#connection.run(COMMIT, keys, args);
    return word === "ok";
  }

  async ids<T extends object>(kind: Kind<T>, { after, limit, ...selection }: Selection = {}): Promise<string[]> {
    const set = this.#setOf(kind, selection);
    const ids: string[] = [];
    for (let last = after; ; last = ids.at(-1)) {
      const most = Math.min(AT_ONCE, (limit ?? Number.POSITIVE_INFINITY) - ids.length);
      const [, ...found] = await this.#connection.run(IDS, [set], [last === undefined ? "-" : `(${last}`, most]);
      ids.push(...(found as string[]));
      if (found.length < AT_ONCE || ids.length === limit) return ids;
    }
  }

  async count<T extends object>(kind: Kind<T>, selection: Pick<Selection, "by" | "value"> = {}): Promise<number> {
    const [, count] = await this.#connection.run(COUNT, [this.#setOf(kind, selection)], []);
    return Number(count);
  }

  async now(): Promise<number> {
    const [, now] = await this.#connection.run(TELL_TIME, [], []);
    return Number(now);
  }

  async close(): Promise<void> {
    await this.#connection.close();
  }

  #textOf(key: string, commit: string, from: Row<object> | null, to: object): string {
    const revision = Number(/^\d+ (\d+)-/.exec(from?.version ?? "")?.[1] ?? 0) + 1;
    const version = `${SCHEMA} ${revision}-${commit}`;
    const data = JSON.stringify(to);
    return `${version} ${this.#documents.signer.sign(key, `${version}\n${data}`)}\n${data}`;
  }

  #keyOf({ name }: { name: string }, id: string): string {
    return `${this.#prefix}${name}:${id}`;
  }

  #setOf({ name }: { name: string }, { by, value = "" }: Selection): string {
    return by === undefined ? `${this.#prefix}${name}-ids` : `${this.#prefix}${name}-by-${by}:${value}`;
  }

  #setsOf(kind: Kind<object>, record: object): string[] {
    const found = Object.entries(kind.by).flatMap(([by, find]) => {
      const value = find(record);
      return value === null ? [] : this.#setOf(kind, { by, value });
    });
    return [this.#setOf(kind, {}), ...found];
  }
}
