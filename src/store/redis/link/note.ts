import { createHash } from "node:crypto";
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { quote, systemCode } from "../../../errors.js";
import { scratchName } from "../../file/commit/durable.js";
import { reason } from "../../file/failures.js";
import { ensureStateFolder } from "../../file/state-folder.js";

/**
 * The epoch of a database as this host last found it, in one file per database in the state folder. It helps to detect
 * the loss of all data between two commands. The fleet also works without it.
 */
export class Note {
  readonly path: string;
  readonly #root: string;
  readonly #database: string;
  readonly #warn: (message: string) => void;

  /** @param database The URL without secrets, which identifies the database on this host. */
  constructor(root: string, database: string, warn: (message: string) => void) {
    this.#root = root;
    this.#database = database;
    this.#warn = warn;
    this.path = join(root, `redis-${createHash("sha256").update(database).digest("hex").slice(0, 12)}.json`);
  }

  /** Undefined if this host has not used the database before. */
  read(): string | undefined {
    try {
      const { epoch } = JSON.parse(readFileSync(this.path, "utf8")) as { epoch?: unknown };
      return typeof epoch === "string" ? epoch : undefined;
    } catch (error) {
      if (systemCode(error) !== "ENOENT") this.#warn(`${quote(this.path)} cannot be read: ${reason(error)}.`);
      return undefined;
    }
  }

  write(epoch: string): void {
    const temp = join(this.#root, scratchName("tmp"));
    try {
      ensureStateFolder(this.#root);
      writeFileSync(temp, `${JSON.stringify({ database: this.#database, epoch })}\n`, { mode: 0o600, flag: "wx" });
      renameSync(temp, this.path);
    } catch (error) {
      rmSync(temp, { force: true });
      this.#warn(
        `${quote(this.path)} cannot be written, so a loss of Redis's data would go unnoticed: ${reason(error)}.`,
      );
    }
  }
}
