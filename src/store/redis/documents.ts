import { randomBytes } from "node:crypto";
import { SCHEMA } from "../store.js";
import type { Connection } from "./connection.js";
import { COMMIT, COUNT, REMOVE } from "./document-scripts.js";
import { corruptError, newerError } from "./failures.js";
import type { Keys } from "./keys.js";
import { TURN_MS } from "./writer-lock.js";

/**
 * How long the mark of a commit stays. Longer than any writer goes on asking: each gives up after seconds, and the server
 * then refuses what still arrives.
 */
export const MARK_MS = 60_000;

/** A document as it was read. */
export interface Stored {
  /** Its first line, the line's end included: schema, revision, id of the commit. */
  head: string;
  /** Counts up with each commit. */
  revision: number;
  /** JSON. */
  data: string;
}

/** Where a document is listed: the key of the set, and what stands there for it. */
export interface Listed {
  set: string;
  member: string;
  /** Another set that has the member. */
  also?: string;
}

/** @throws FleetError `FLEET_STATE_NEWER`, `FLEET_STATE_CORRUPT`. */
export function decode(key: string, text: string): Stored {
  const end = text.indexOf("\n");
  const head = text.slice(0, end + 1);
  const [, schema = "", revision = ""] = /^(\d{1,9}) (\d{1,15})-[0-9a-f]+\n$/.exec(head) ?? [];
  if (schema === "") throw corruptError(key, "its first line is not one");
  if (Number(schema) > SCHEMA) throw newerError(key, Number(schema));
  return { head, revision: Number(revision), data: text.slice(end + 1) };
}

/** The data of a document as an object. Every call gives a private copy. @throws FleetError `FLEET_STATE_CORRUPT`. */
export function parseObject<T>(key: string, data: string): T {
  let content: unknown;
  try {
    content = JSON.parse(data);
  } catch (error) {
    throw corruptError(key, error instanceof Error ? error.message : String(error), error);
  }
  if (typeof content !== "object" || content === null || Array.isArray(content)) {
    throw corruptError(key, "it holds no object");
  }
  return content as T;
}

/**
 * Whole documents under a key each. A commit replaces one if it is still the one that was read; it is exactly once there
 * also when its answer was lost (document-scripts.ts).
 */
export class Documents {
  readonly #connection: Connection;
  readonly #keys: Keys;

  constructor(connection: Connection, keys: Keys) {
    this.#connection = connection;
    this.#keys = keys;
  }

  async read(keys: readonly string[]): Promise<(Stored | null)[]> {
    const texts = await this.#connection.read(keys);
    return texts.map((text, index) => (text === null ? null : decode(keys[index] ?? "", text)));
  }

  /**
   * @param from What it takes the place of, or null when there may be none.
   * @param beside Where to list it, if it is one of many; whose turn it ends, if it is the registry.
   * @returns false when another writer was first.
   */
  async commit(
    key: string,
    from: Stored | null,
    data: string,
    { listed, turn = "" }: { listed?: Listed; turn?: string },
  ): Promise<boolean> {
    const id = newId();
    const document = `${SCHEMA} ${(from?.revision ?? 0) + 1}-${id}\n${data}`;
    const keys = [key, this.#keys.commit(id), listed?.set ?? this.#keys.sessions, ...this.#keys.turnKeys];
    if (listed?.also !== undefined) keys.push(listed.also);
    const args = [from?.head ?? "", document, MARK_MS, listed?.member ?? "", turn, TURN_MS];
    const [word] = await this.#connection.run(COMMIT, keys, args);
    return word === "ok";
  }

  /**
   * Removes a document that is listed.
   *
   * @param from The one to remove, or null for whatever is there.
   * @param besides Keys that go with it, and also go when there is no record.
   */
  async remove(
    { key, set, member, also }: Listed & { key: string },
    from: Stored | null,
    besides: readonly string[] = [],
  ): Promise<"ok" | "absent" | "conflict"> {
    const keys = [key, this.#keys.commit(newId()), set, ...besides, ...(also === undefined ? [] : [also])];
    const args = [from?.head ?? "*", MARK_MS, member, also === undefined ? 0 : 1];
    const [word] = await this.#connection.run(REMOVE, keys, args);
    return word === "ok" || word === "absent" ? word : "conflict";
  }

  /** How many members a set has. */
  async count(set: string): Promise<number> {
    const [, count] = await this.#connection.run(COUNT, [set], []);
    return Number(count);
  }
}

export function newId(): string {
  return randomBytes(12).toString("hex");
}
