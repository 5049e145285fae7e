import { randomBytes } from "node:crypto";
import { FleetError, quote } from "../../base/errors.js";
import { SCHEMA } from "../../base/server.js";
import { isObject, sha256 } from "../../base/values/text.js";
import { newerError } from "../failures.js";
import type { AnyKind, Changes, Kind, Row, Rows, Selection } from "../rows.js";
import type { Connection } from "./connection.js";
import { corruptError } from "./failures.js";
import { foundingScript, script, TELL_TIME } from "./scripts.js";
import type { Signer } from "./signatures.js";

/*
 * A row is a text under its own key. It begins with a header line: schema, revision, the random id of the commit that
 * wrote it, and its signature. A commit compares this line before it replaces the row.
 *
 * The ids of all rows of a kind, and those under each value of an index, are sorted sets in which all scores are 0. So
 * Redis sorts them by their bytes (redis.io, "ZRANGEBYLEX").
 */

/**
 * KEYS[2] the commit key, which exists for a while after a commit. A writer that gets no answer sends the same command
 * again. The second command does nothing if it finds the commit key. KEYS[3] and later: rows and sets. ARGV[4] lifetime
 * of the commit key (ms), [5] '1' if the commit must succeed on a full Redis, [6] the changes as JSON. Each has the
 * number of the row's key, the header that the row must have (empty: there must be no row), the new text or null, its
 * end (ms since the epoch, or null), and the numbers of the sets to which the id is added and from which it is removed.
 *
 * A full Redis refuses a script whose first write needs memory. So a vital commit first deletes what does not exist.
 */
const COMMIT = foundingScript(`
local done = redis.call('GET', KEYS[2])
if done then return {done} end
local changes = cjson.decode(ARGV[6])
for _, change in ipairs(changes) do
  local key, head = KEYS[change.key], change.head
  if head == '' then
    if redis.call('EXISTS', key) == 1 then return {'conflict'} end
  elseif redis.call('GETRANGE', key, 0, #head - 1) ~= head then
    return {'conflict'}
  end
end
if ARGV[5] == '1' then redis.call('DEL', KEYS[2]) end
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
redis.call('SET', KEYS[2], 'ok', 'PX', ARGV[4])
return {'ok'}
`);

/** KEYS[2] a set. ARGV[4] the first id ('-' or '(' and the id before it), [5] the most ids, or -1. */
const IDS = script("return {'ids', unpack(redis.call('ZRANGEBYLEX', KEYS[2], ARGV[4], '+', 'LIMIT', 0, ARGV[5]))}");
const COUNT = script("return {'count', redis.call('ZCARD', KEYS[2])}");
/**
 * KEYS[2] the set of a kind, KEYS[3] and later: rows. ARGV[4] and later: the ids of the rows. Removes ids of rows that
 * have ended.
 */
const FORGET_ENDED = script(`
for index = 3, #KEYS do
  if redis.call('EXISTS', KEYS[index]) == 0 then redis.call('ZREM', KEYS[2], ARGV[index + 1]) end
end
return {'ok'}
`);

/**
 * How long a commit key lasts, in milliseconds. A repeated command always finds the key, because a script does nothing
 * if it arrives more than a few seconds late.
 */
const COMMIT_KEY_MS = 60_000;
/** How many ids one answer contains. Lua cannot return many more values. */
const AT_ONCE = 1_000;
/** How many rows one process remembers, so that they use at most about 30 MB. */
const MOST_KNOWN = 100_000;

const HEAD = /^((\d{1,9}) (\d{1,15})-[0-9a-f]+)(?: ([0-9a-f]{8}\.[\w-]{43}))?\n$/;

/** A row with its header, which nobody has verified. */
export interface RawRow {
  key: string;
  /** The first line, with its newline. If it is not a valid header, the whole text. */
  head: string;
  /** 0 if the header is not valid. */
  schema: number;
  revision: number;
  /** The part of the row that the signature covers. */
  content: string;
  signature: string | undefined;
  data: string;
}

interface Known {
  revision: number;
  /** A digest of the row's rights. Empty if its kind has none. */
  rights: string;
}

function rightsOf({ rights }: AnyKind, record: object): string {
  return rights === null ? "" : sha256(JSON.stringify(rights(record)));
}

function olderThanKnown(key: string): string {
  return `The record ${quote(key)} in Redis is older than one that this host has read before.`;
}

function putBack(key: string): FleetError {
  const message = `${olderThanKnown(key)} It gives rights to other users, so the fleet does not use it.`;
  return new FleetError("FLEET_STATE_UNSIGNED", message, {
    suggestions: [
      "Find out who else can write to Redis, and change its password.",
      "If Redis lost changes in a failover: restart serve on all hosts, then set the members of the session again.",
    ],
  });
}

/** Rows in a Redis database, which many hosts may share. */
export class RedisRows implements Rows {
  readonly #connection: Connection;
  readonly #signer: Signer;
  /** The beginning of all keys. */
  readonly #prefix: string;
  readonly #warn: (message: string) => void;
  /** The newest version of each row that this process has read or written, in the order of their last use. */
  readonly #known = new Map<string, Known>();

  /** @param prefix as {@link keyPrefix} returns it */
  constructor(connection: Connection, signer: Signer, prefix: string, warn: (message: string) => void) {
    this.#connection = connection;
    this.#signer = signer;
    this.#prefix = prefix;
    this.#warn = warn;
  }

  async read<T extends object>(kind: Kind<T>, ids: readonly string[]): Promise<(Row<T> | null)[]> {
    // Compare with what was known before the read, because this process may commit a newer row during the read.
    const known = ids.map((id) => this.#known.get(this.#keyOf(kind, id)));
    const rows = await this.readRaw(kind, ids);
    return rows.map((raw, index) => {
      if (raw === null) return null;
      const { key, head, schema, content, signature, data } = raw;
      if (schema === 0) throw corruptError(key, "its first line is not a valid header");
      this.#signer.assert(key, content, signature);
      // Check this after the signature, so that nobody else can make a row look as if a newer version had written it.
      if (schema > SCHEMA) throw newerError(key, schema);
      const record = parseRecord<T>(key, data);
      this.#meet(raw, rightsOf(kind, record), known[index]);
      return { id: ids[index] ?? "", version: head, record };
    });
  }

  /** Reads rows without verifying anything. */
  async readRaw(kind: Pick<Kind<never>, "name">, ids: readonly string[]): Promise<(RawRow | null)[]> {
    const keys = ids.map((id) => this.#keyOf(kind, id));
    const texts = await this.#connection.read(keys);
    return texts.map((text, index) => (text === null ? null : parseRow(keys[index] ?? "", text)));
  }

  async commit(changes: Changes): Promise<boolean> {
    const commit = randomBytes(12).toString("hex");
    const keys = [`${this.#prefix}commit:${commit}`];
    const numberOf = (key: string) => {
      const known = keys.indexOf(key);
      // The first key is that of every script.
      return 2 + (known === -1 ? keys.push(key) - 1 : known);
    };
    const written: [key: string, known: Known][] = [];
    const listed = changes.map(({ kind, id, from, to }) => {
      const key = this.#keyOf(kind, id);
      const setsOf = (record: object | null) => (record === null ? [] : this.#setsOf(kind, record));
      const [before, after] = [setsOf(from?.record ?? null), setsOf(to)];
      const revision = this.#revisionAfter(key, from);
      if (to !== null) written.push([key, { revision, rights: rightsOf(kind, to) }]);
      return {
        key: numberOf(key),
        id,
        head: from?.version ?? "",
        text: to && this.#textOf(key, `${SCHEMA} ${revision}-${commit}`, to),
        ends: to && kind.endsAt(to),
        removed: before.filter((set) => !after.includes(set)).map(numberOf),
        added: after.filter((set) => from === null || !before.includes(set)).map(numberOf),
      };
    });
    const isVital = changes.some(({ kind }) => kind.isVital);
    const args = [COMMIT_KEY_MS, isVital ? "1" : "0", JSON.stringify(listed)];
    const [word] = await this.#connection.run(COMMIT, keys, args);
    if (word !== "ok") return false;
    for (const [key, known] of written) this.#remember(key, known);
    return true;
  }

  async erase(kind: AnyKind, id: string): Promise<boolean> {
    for (;;) {
      const [raw = null] = await this.readRaw(kind, [id]);
      if (raw === null) return false;
      const isOurs = ["good", "outdated"].includes(this.#signer.verify(raw.key, raw.content, raw.signature));
      if (isOurs && raw.schema > SCHEMA) throw newerError(raw.key, raw.schema);
      if (await this.#eraseRaw(kind, id, raw)) return true;
    }
  }

  async #eraseRaw(kind: AnyKind, id: string, { key, head, data }: RawRow): Promise<boolean> {
    const keys = [`${this.#prefix}commit:${randomBytes(12).toString("hex")}`, key, ...this.#setsOfDamaged(kind, data)];
    const sets = keys.slice(2).map((_, index) => 4 + index);
    const change = { key: 3, id, head, text: null, ends: null, removed: sets, added: [] };
    const [word] = await this.#connection.run(COMMIT, keys, [COMMIT_KEY_MS, "1", JSON.stringify([change])]);
    return word === "ok";
  }

  /** The sets that list a row, as far as its content shows them. */
  #setsOfDamaged(kind: AnyKind, data: string): string[] {
    try {
      return this.#setsOf(kind, parseRecord("", data));
    } catch {
      return [this.#setOf(kind, {})];
    }
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

  async forgetEnded(kind: Kind<never>): Promise<void> {
    for (let after: string | undefined; ; ) {
      const ids = await this.ids(kind, { ...(after === undefined ? {} : { after }), limit: AT_ONCE });
      if (ids.length === 0) return;
      const rows = ids.map((id) => this.#keyOf(kind, id));
      await this.#connection.run(FORGET_ENDED, [this.#setOf(kind, {}), ...rows], ids);
      after = ids.at(-1);
    }
  }

  async close(): Promise<void> {
    await this.#connection.close();
  }

  /** @throws FleetError `FLEET_STATE_UNSIGNED` if a row that is older than the known one has other rights */
  #meet({ key, revision }: RawRow, rights: string, known: Known | undefined): void {
    if (known !== undefined && revision < known.revision) {
      if (rights !== known.rights) throw putBack(key);
      this.#warn(
        `${olderThanKnown(key)} Redis has lost changes, for example in a failover, or somebody has put it back.`,
      );
    }
    this.#remember(key, { revision, rights });
  }

  #remember(key: string, seen: Known): void {
    const known = this.#known.get(key);
    this.#known.delete(key);
    this.#known.set(key, known !== undefined && known.revision > seen.revision ? known : seen);
    if (this.#known.size <= MOST_KNOWN) return;
    // Forget many at once, because finding the first key of a map is slow after many deletions.
    for (const first of [...this.#known.keys()].slice(0, MOST_KNOWN / 10)) this.#known.delete(first);
  }

  /**
   * Revisions follow the clock, so that a row that was deleted and created again has a higher one than before. They
   * also exceed all known ones, because rows that Redis has lost must not count as newer if somebody puts them back.
   */
  #revisionAfter(key: string, from: Row<object> | null): number {
    const before = Number(/^\d+ (\d+)-/.exec(from?.version ?? "")?.[1] ?? 0);
    return Math.max(before + 1, (this.#known.get(key)?.revision ?? 0) + 1, Date.now());
  }

  #textOf(key: string, version: string, to: object): string {
    const data = JSON.stringify(to);
    return `${version} ${this.#signer.sign(key, `${version}\n${data}`)}\n${data}`;
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

/**
 * The beginning of all keys of a fleet. The braces put all keys into one hash slot (Redis Cluster specification), so
 * that a script may use several of them.
 *
 * @param fleet the name of the fleet. It comes only from the database's URL, so that everybody with the same URL uses
 * the same fleet.
 */
export function keyPrefix(fleet: string): string {
  return `copilotfleet:{${fleet}}:`;
}

function parseRow(key: string, text: string): RawRow {
  const end = text.indexOf("\n");
  const head = text.slice(0, end + 1);
  const [, version = "", schema = "0", revision = "0", signature] = HEAD.exec(head) ?? [];
  const data = text.slice(end + 1);
  const content = `${version}\n${data}`;
  return {
    key,
    head: schema === "0" ? text : head,
    schema: Number(schema),
    revision: Number(revision),
    data,
    content,
    signature,
  };
}

/** Parses the record of a row. Every call returns a private copy. */
export function parseRecord<T>(key: string, data: string): T {
  let content: unknown;
  try {
    content = JSON.parse(data);
  } catch (error) {
    throw corruptError(key, error instanceof Error ? error.message : String(error), error);
  }
  if (isObject(content)) return content as T;
  throw corruptError(key, "it does not contain an object");
}
