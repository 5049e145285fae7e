import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../../../errors.js";
import { SCHEMA } from "../../../model/registry.js";
import { newerError } from "../../failures.js";
import { reason } from "../../file/failures.js";
import { replaceStateFile } from "../../file/state-folder.js";
import { corruptError } from "./failures.js";

const EPOCH = /^(\d{1,9}) \S+$/;

/**
 * Detects whether a database has lost its data. The first write gives the database an epoch, which is a random id. Every
 * read and every script compares it, so that nobody takes a lost registry for an empty pool.
 */
export class Epoch {
  readonly fresh = `${SCHEMA} ${randomBytes(16).toString("hex")}`;
  readonly #where: string;
  readonly #note: Note;
  #known: string | undefined;
  #noted: string | undefined;

  /** @param where the URL of the database without secrets */
  constructor(where: string, root: string, warn: (message: string) => void) {
    this.#where = where;
    this.#note = new Note(root, where, warn);
  }

  get known(): string | undefined {
    return this.#known;
  }

  /**
   * The epoch that the database must have, or undefined if none is known. Read it before you send a request, because
   * another process may make the first write while the request is under way.
   */
  get expected(): string | undefined {
    return this.#known ?? this.#noted;
  }

  /** Reads the note. Call this before you open a connection. */
  recall(): void {
    this.#noted ??= this.#note.read();
  }

  /** Compares the epoch in the database with the expected one. @throws FleetError `FLEET_STATE_LOST` when it has changed. */
  meet(found: string | null, expected: string | undefined): void {
    if (found === null) {
      if (expected !== undefined) throw this.lost("it is empty");
      return;
    }
    if (found === this.#known) return;
    const schema = Number(EPOCH.exec(found)?.[1] ?? 0);
    if (schema > SCHEMA) throw newerError(this.#where, schema);
    if (schema === 0) throw corruptError(this.#where, "its epoch is not valid");
    if (this.expected !== undefined && this.expected !== found) throw this.lost("its epoch has changed");
    this.#known = found;
    if (this.#noted === undefined) this.#note.write(found);
    this.#noted = found;
  }

  lost(how: string): FleetError {
    const { path } = this.#note;
    const message = `The Redis database ${quote(this.#where)} lost its data (${how}). Servers and sessions that it does not know may still exist.`;
    return new FleetError("FLEET_STATE_LOST", message, {
      suggestions: [
        "Restore a backup of the Redis database.",
        `Or continue without the lost data and end the servers of this host: mv ${path} ${path}.lost && copilotfleet doctor --fix`,
      ],
    });
  }
}

/** The epoch as this host last found it, for the next command. The fleet also works without this note. */
class Note {
  readonly path: string;
  readonly #root: string;
  readonly #database: string;
  readonly #warn: (message: string) => void;

  /** @param database the URL without secrets, which identifies the database on this host */
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
    try {
      replaceStateFile(this.#root, this.path, { database: this.#database, epoch });
    } catch (error) {
      this.#warn(
        `${quote(this.path)} cannot be written, so a loss of Redis's data would go unnoticed: ${reason(error)}.`,
      );
    }
  }
}
