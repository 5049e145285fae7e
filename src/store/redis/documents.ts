import { randomBytes } from "node:crypto";
import { isFleetError } from "../../base/errors.js";
import { SCHEMA } from "../../base/server.js";
import { isObject } from "../../base/values/text.js";
import { isDamaged, newerError } from "../failures.js";
import type { OnUnreadable } from "../ports.js";
import { type Connection, FIRST_REGISTRY } from "./connection.js";
import { corruptError, type Keys } from "./failures.js";
import { COMMIT, COUNT, LEAVE_WRITER_LOCK, REMOVE, TAKE_WRITER_LOCK } from "./scripts.js";
import type { Signer } from "./signatures.js";

/**
 * How long a commit key lasts, in milliseconds. A repeated command always finds the key, because a script does nothing
 * if it arrives more than a few seconds late.
 */
export const COMMIT_KEY_MS = 60_000;

export interface Stored {
  /** The first line of the document, with its newline. It contains schema, revision, id of the commit, and signature. */
  head: string;
  /** Grows by one with each commit. */
  revision: number;
  data: string;
}

const HEAD = /^((\d{1,9}) (\d{1,15})-[0-9a-f]+)(?: ([0-9a-f]{8}\.[\w-]{43}))?\n$/;

/** The Redis sets that list a document. */
interface Listed {
  set: string;
  /** The document's name in `set` and `also`. */
  member: string;
  /** A second set that lists the document, or null. */
  also: string | null;
}

interface Parsed extends Stored {
  schema: number;
  /** The part of the document that the signature covers. */
  content: string;
  signature: string | undefined;
}

/** Splits a document into its parts. Verifies neither the signature nor the schema. */
export function parse(key: string, text: string): Parsed {
  const end = text.indexOf("\n");
  const head = text.slice(0, end + 1);
  const [, version = "", schema = "", revision = "", signature] = HEAD.exec(head) ?? [];
  if (schema === "") throw corruptError(key, "its first line is not a valid header");
  const data = text.slice(end + 1);
  return { schema: Number(schema), head, revision: Number(revision), data, content: `${version}\n${data}`, signature };
}

/** Parses the data of a document. Every call returns a private copy. */
export function parseObject<T>(key: string, data: string): T {
  let content: unknown;
  try {
    content = JSON.parse(data);
  } catch (error) {
    throw corruptError(key, error instanceof Error ? error.message : String(error), error);
  }
  if (isObject(content)) return content as T;
  throw corruptError(key, "it does not contain an object");
}

/**
 * Documents, each under its own key. A commit replaces a document only if nobody has changed it since the writer read it.
 * The commit happens exactly once, even if its answer is lost (document-scripts.ts).
 */
export class Documents {
  readonly connection: Connection;
  readonly keys: Keys;
  readonly signer: Signer;

  constructor(connection: Connection, keys: Keys, signer: Signer) {
    this.connection = connection;
    this.keys = keys;
    this.signer = signer;
  }

  /** Verifies and splits a document. @throws FleetError `FLEET_STATE_UNSIGNED` when it does not come from this fleet */
  decode(key: string, text: string): Stored {
    const { schema, content, signature, ...stored } = parse(key, text);
    // The first registry is not signed, because the first script that writes to an empty database creates it. An
    // attacker who writes it gains nothing.
    if (key !== this.keys.founding || text !== FIRST_REGISTRY) this.signer.assert(key, content, signature);
    // Check this after the signature, so that nobody else can make a record look as if a newer version had written it.
    if (schema > SCHEMA) throw newerError(key, schema);
    return stored;
  }

  async read(keys: readonly string[]): Promise<(Stored | null)[]> {
    const texts = await this.connection.read(keys);
    return texts.map((text, index) => (text === null ? null : this.decode(keys[index] ?? "", text)));
  }

  /**
   * Creates or replaces a document.
   *
   * @param from the document to replace, or null if the document must not exist
   * @param listed the sets that list a new document
   * @param writer the token of the writer lock that a commit of the registry releases
   * @returns false when another writer was first
   */
  async commit(
    key: string,
    from: Stored | null,
    data: string,
    { listed, writer = "" }: { listed?: Listed; writer?: string },
  ): Promise<boolean> {
    const id = newId();
    const version = `${SCHEMA} ${(from?.revision ?? 0) + 1}-${id}`;
    const document = `${version} ${this.signer.sign(key, `${version}\n${data}`)}\n${data}`;
    const keys = [key, this.keys.commit(id), listed?.set ?? this.keys.sessions, ...this.keys.writerLockKeys];
    if (listed?.also != null) keys.push(listed.also);
    const args = [from?.head ?? "", document, COMMIT_KEY_MS, listed?.member ?? "", writer, HOLD_MS];
    const [word] = await this.connection.run(COMMIT, keys, args);
    return word === "ok";
  }

  /**
   * Deletes a document and removes it from its sets.
   *
   * @param from the document as it must be now, or null to delete any version
   * @param besides other keys to delete, even if the document does not exist
   */
  async remove(
    key: string,
    { set, member, also }: Listed,
    from: Stored | null,
    besides: readonly string[] = [],
  ): Promise<"ok" | "absent" | "conflict"> {
    const keys = [key, this.keys.commit(newId()), set, ...besides, ...(also === null ? [] : [also])];
    const args = [from?.head ?? "*", COMMIT_KEY_MS, member, also === null ? 0 : 1];
    const [word] = await this.connection.run(REMOVE, keys, args);
    return word === "ok" || word === "absent" ? word : "conflict";
  }

  async count(set: string): Promise<number> {
    const [, count] = await this.connection.run(COUNT, [set], []);
    return Number(count);
  }
}

export function newId(): string {
  return randomBytes(12).toString("hex");
}

export const AT_ONCE = 200;

export interface Found<T> {
  stored: Stored;
  record: T;
}

/** The records of one kind: a document for each record, and a set with the names of all records for `list`. */
export class RecordSet<T extends object> {
  readonly #documents: Documents;
  readonly #set: string;
  readonly #keyOf: (name: string) => string;
  readonly #isName: (name: string) => boolean;

  /**
   * @param set the key of the set
   * @param isName whether a member of the set can be a name. The set is not signed, so it may have other members, too.
   */
  constructor(documents: Documents, set: string, keyOf: (name: string) => string, isName = (_: string) => true) {
    this.#isName = isName;
    this.#documents = documents;
    this.#set = set;
    this.#keyOf = keyOf;
  }

  async read(name: string): Promise<T | null> {
    return (await this.find(name))?.record ?? null;
  }

  /** Like {@link read}, but returns null for an unreadable record. */
  async readIfReadable(name: string): Promise<T | null> {
    return await this.read(name).catch((error: unknown) => {
      if (!isDamaged(error)) throw error;
      return null;
    });
  }

  async find(name: string): Promise<Found<T> | null> {
    const [found = null] = await this.findAll([name]);
    return found;
  }

  async findAll(names: readonly string[]): Promise<(Found<T> | null)[]> {
    const keys = names.map((name) => this.#keyOf(name));
    const documents = await this.#documents.read(keys);
    return documents.map(
      (stored, index) => stored && { stored, record: parseObject<T>(keys[index] ?? "", stored.data) },
    );
  }

  /** As `SessionStore.list`. */
  async list(onUnreadable?: OnUnreadable): Promise<Map<string, T>> {
    const records = new Map<string, T>();
    for await (const members of this.#documents.connection.membersOf(this.#set, AT_ONCE)) {
      const names = members.filter((name) => this.#isName(name));
      // Read even if there are no names, because a read detects whether the database has lost its data.
      const found = await (onUnreadable ? this.#findReadable(names, onUnreadable) : this.findAll(names));
      for (const [index, name] of names.entries()) {
        const record = found[index]?.record;
        if (record !== undefined) records.set(name, record); // undefined: deleted after the scan
      }
    }
    return records;
  }

  /** Like {@link findAll}, but reports damaged records. If there are any, reads each of `names` alone to find them. */
  async #findReadable(names: readonly string[], onUnreadable: OnUnreadable): Promise<(Found<T> | null)[]> {
    const unlessUnreadable = (name: string) => (error: unknown) => {
      if (!isDamaged(error)) throw error;
      onUnreadable(name, error);
      return null;
    };
    return await this.findAll(names).catch(async (error: unknown) => {
      if (!isDamaged(error)) throw error;
      return await Promise.all(names.map((name) => this.find(name).catch(unlessUnreadable(name))));
    });
  }

  /** As {@link Documents.commit}. @param also a second set that lists the record */
  async commit(name: string, from: Stored | null, data: string, also: string | null = null): Promise<boolean> {
    return await this.#documents.commit(this.#keyOf(name), from, data, { listed: this.#listed(name, also) });
  }

  /** Like {@link Documents.remove}. */
  async remove(
    name: string,
    from: Stored | null,
    { also = null, besides }: { also?: string | null; besides?: readonly string[] } = {},
  ): Promise<"ok" | "absent" | "conflict"> {
    return await this.#documents.remove(this.#keyOf(name), this.#listed(name, also), from, besides);
  }

  #listed(member: string, also: string | null): Listed {
    return { set: this.#set, member, also };
  }
}

/** How long a writer may hold the lock, in milliseconds. An update takes less time. */
const HOLD_MS = 250;
const PLACE_MS = 1_000;
/** After this time a writer continues without the lock, in milliseconds. */
const PATIENCE_MS = 2_000;
/** How often the first writer in the queue asks for the lock if no message arrives, in milliseconds. */
const NEXT_ASKS_MS = 25;
/** The same for the other writers in the queue. */
const OTHERS_ASK_MS = 150;

export interface TakenLock {
  /** The current registry. Null if no registry exists, undefined if the writer continues without the lock. */
  registry: string | null | undefined;
}

/**
 * Lets the writers of the registry commit one after another, in the order of their arrival. This only saves time. Without
 * it, all writers but one would fail in each round and try again.
 */
export class WriterLock {
  readonly #connection: Connection;
  readonly #keys: readonly string[];
  readonly #channel: string;
  /** Identifies this store object among the writers. A store object holds the lock at most once at a time. */
  readonly token: string;
  #listens = true;
  #heard: string | undefined;
  #wake: (() => void) | undefined;

  constructor(connection: Connection, keys: Keys, token: string) {
    this.#connection = connection;
    this.token = token;
    this.#keys = [...keys.writerLockKeys, keys.registry];
    this.#channel = `${keys.writerLock}:${token}`;
  }

  async take(): Promise<TakenLock> {
    const until = performance.now() + PATIENCE_MS;
    this.#heard = undefined;
    do {
      const [word, rest] = await this.#connection.run(TAKE_WRITER_LOCK, this.#keys, [this.token, HOLD_MS, PLACE_MS]);
      if (word === "taken") return { registry: typeof rest === "string" ? rest : null };
      // Ask again after subscribing, because Redis may have sent the message before the subscription.
      if (await this.#listen()) continue;
      await this.#hear(rest === 0 ? NEXT_ASKS_MS : OTHERS_ASK_MS);
      if (this.#heard !== undefined) return { registry: this.#heard === "" ? null : this.#heard };
    } while (performance.now() < until);
    return { registry: undefined };
  }

  /** Releases the lock if no commit has released it, or gives up the place in the queue. */
  async leave(): Promise<void> {
    await this.#connection.run(LEAVE_WRITER_LOCK, this.#keys, [this.token, HOLD_MS]);
  }

  /**
   * Subscribes to this writer's channel. If Redis's access rules forbid that, the writer only polls.
   *
   * @returns whether this call started the subscription
   */
  async #listen(): Promise<boolean> {
    if (!this.#listens) return false;
    const onMessage = (registry: string) => {
      this.#heard = registry;
      this.#wake?.();
    };
    try {
      return await this.#connection.listen(this.#channel, onMessage);
    } catch (error) {
      if (!isFleetError(error, "FLEET_STORE_UNUSABLE")) throw error;
      this.#listens = false;
      return false;
    }
  }

  async #hear(ms: number): Promise<void> {
    if (this.#heard !== undefined) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = undefined;
  }
}
