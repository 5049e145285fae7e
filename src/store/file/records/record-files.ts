import { readdirSync, readFileSync, statSync } from "node:fs";
import { link, rename, unlink } from "node:fs/promises";
import { join } from "node:path";
import type { Suggestion } from "../../../errors.js";
import { corruptError, newerError } from "../../failures.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../commit/durable.js";
import { decodeRevision, encodeRevision } from "../commit/revision.js";
import type { StoreContext } from "../context.js";
import { failsWith, readIfThere, writing } from "../failures.js";

/** Each of these records has only one revision, because it is replaced as a whole or never changes. */
const REVISION = 1;
const FILE = /^([a-z0-9]{1,64})\.json$/;

/** The records of one kind, each in one file. A record's name consists of 1 to 64 lower-case letters and digits. */
export class RecordFiles<T> {
  readonly #context: StoreContext;
  readonly #folder: string;
  readonly #remedy: ((name: string) => Suggestion) | null;

  /**
   * @param remedy returns the command that deletes a damaged record. If `remedy` is null, a damaged record counts as
   * missing.
   */
  constructor(context: StoreContext, folder: string, remedy: ((name: string) => Suggestion) | null) {
    this.#context = context;
    this.#folder = join(context.root, folder);
    this.#remedy = remedy;
  }

  read(name: string): T | null {
    this.#context.checkRoot();
    return this.#read(name);
  }

  #read(name: string): T | null {
    const path = this.#pathOf(name);
    // Check first whether the file exists, because this is faster than an exception. Usually it does not exist, for
    // example when the fleet checks whether a credential was revoked.
    const isThere = readIfThere(path, () => statSync(path, { throwIfNoEntry: false }) !== undefined);
    const bytes = isThere === true ? readIfThere(path, () => readFileSync(path)) : undefined;
    if (bytes === undefined) return null;
    const decoded = decodeRevision(bytes, REVISION);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "good") return JSON.parse(decoded.data) as T;
    if (this.#remedy !== null) throw corruptError(path, decoded.reason, this.#remedy(name));
    return null;
  }

  list(): T[] {
    return this.names().flatMap((name) => this.#read(name) ?? []);
  }

  /** The names of all records. Reads none of them. */
  names(): string[] {
    this.#context.checkRoot();
    const files = readIfThere(this.#folder, () => readdirSync(this.#folder));
    return (files ?? []).flatMap((file) => FILE.exec(file)?.[1] ?? []);
  }

  /** Creates a record. Resolves with false if it exists. */
  async create(name: string, record: T): Promise<boolean> {
    const exists = () => failsWith(["EEXIST"], () => this.#write(name, record, link));
    return !(await writing(this.#folder, exists));
  }

  /** If two processes replace a record at the same time, the later one wins. */
  async replace(name: string, record: T): Promise<void> {
    await writing(this.#folder, () => this.#write(name, record, rename));
  }

  /** Writes a record to a temporary file. @param publish gives the complete temporary file its final name */
  async #write(name: string, record: T, publish: (temp: string, path: string) => Promise<void>): Promise<void> {
    const { root, ensureRoot } = this.#context;
    ensureRoot();
    const temp = join(root, scratchName("tmp"));
    try {
      makeFolder(this.#folder);
      const bytes = encodeRevision(REVISION, scratchName("tmp"), JSON.stringify(record));
      closeQuietly(await writeNewFile(temp, bytes));
      await publish(temp, this.#pathOf(name));
      await syncFolder(this.#folder);
    } finally {
      unlinkQuietly(temp);
    }
  }

  /** Deletes a record. Resolves with true if it existed. */
  async delete(name: string): Promise<boolean> {
    this.#context.checkRoot();
    return await writing(this.#folder, async () => {
      if (await failsWith(["ENOENT"], () => unlink(this.#pathOf(name)))) return false;
      await syncFolder(this.#folder);
      return true;
    });
  }

  #pathOf(name: string): string {
    return join(this.#folder, `${name}.json`);
  }
}
