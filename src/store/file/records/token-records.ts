import { readdirSync } from "node:fs";
import { link, unlink } from "node:fs/promises";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../../../errors.js";
import type { TokenRecord } from "../../../model/token.js";
import type { TokenStore } from "../../ports.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../commit/durable.js";
import { readIfThere } from "../commit/head.js";
import { decodeRevision, encodeRevision } from "../commit/revision.js";
import type { StoreContext } from "../context.js";
import { corruptError, mediumError, newerError } from "../failures.js";

const ID = /^[a-z0-9]{1,64}$/;
const NAME = /^([a-z0-9]{1,64})\.json$/;
/** A token is issued and revoked but never changed, so it has only one revision. */
const REVISION = 1;

/** One file for each token. `link()` creates it complete and fails if the name exists. `unlink()` deletes it. */
export class TokenRecords implements TokenStore {
  readonly #context: StoreContext;
  readonly #folder: string;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#folder = join(context.root, "tokens");
  }

  /** A damaged file is an error and not a missing token, so that people who investigate can distinguish the two. */
  async read(id: string): Promise<TokenRecord | null> {
    this.#context.checkRoot();
    return this.#read(id);
  }

  #read(id: string): TokenRecord | null {
    if (!ID.test(id)) return null;
    const path = this.#pathOf(id);
    const bytes = readIfThere(path);
    if (bytes === undefined) return null;
    const decoded = decodeRevision(bytes, REVISION);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "damaged") throw corruptError(path, decoded.reason, `copilotfleet token revoke ${id}`);
    const record = JSON.parse(decoded.data) as TokenRecord;
    return record.id === id ? record : null;
  }

  async create(record: TokenRecord): Promise<void> {
    if (!ID.test(record.id)) throw new FleetError("FLEET_INTERNAL", `${quote(record.id)} is not the id of a token.`);
    const { root, ensureRoot } = this.#context;
    ensureRoot();
    const temp = join(root, scratchName("tmp"));
    try {
      makeFolder(this.#folder);
      const bytes = encodeRevision(REVISION, scratchName("tmp"), JSON.stringify(record));
      await closeQuietly(await writeNewFile(temp, bytes));
      await link(temp, this.#pathOf(record.id));
      await syncFolder(this.#folder);
    } catch (error) {
      if (systemCode(error) === "EEXIST")
        throw new FleetError("FLEET_INTERNAL", `There is already a token ${record.id}.`);
      throw mediumError("write", this.#folder, error);
    } finally {
      await unlinkQuietly(temp);
    }
  }

  async delete(id: string): Promise<boolean> {
    this.#context.checkRoot();
    if (!ID.test(id)) return false;
    try {
      await unlink(this.#pathOf(id));
      await syncFolder(this.#folder);
      return true;
    } catch (error) {
      if (systemCode(error) === "ENOENT") return false;
      throw mediumError("write", this.#folder, error);
    }
  }

  async list(): Promise<TokenRecord[]> {
    this.#context.checkRoot();
    let names: string[];
    try {
      names = readdirSync(this.#folder);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      throw mediumError("read", this.#folder, error);
    }
    return names.flatMap((name) => {
      const id = NAME.exec(name)?.[1];
      return id === undefined ? [] : (this.#read(id) ?? []);
    });
  }

  #pathOf(id: string): string {
    return join(this.#folder, `${id}.json`);
  }
}
