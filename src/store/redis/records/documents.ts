import { randomBytes } from "node:crypto";
import { isObject } from "../../../config/values/json.js";
import { SCHEMA } from "../../../model/registry.js";
import { newerError } from "../../failures.js";
import { type Connection, FIRST_REGISTRY } from "../link/connection.js";
import { corruptError } from "../link/failures.js";
import type { Keys } from "../link/keys.js";
import { COMMIT, COUNT, REMOVE } from "../scripts/document-scripts.js";
import type { Signer } from "../signatures/signer.js";
import { HOLD_MS } from "./writer-lock.js";

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
export interface Listed {
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
