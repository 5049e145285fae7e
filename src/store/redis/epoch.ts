import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import { SCHEMA } from "../../base/server.js";
import { shellQuote } from "../../base/values/text.js";
import { newerError, olderError } from "../failures.js";
import { reason } from "../file/failures.js";
import { replaceStateFile } from "../file/state-folder.js";
import { corruptError } from "./failures.js";

const EPOCH = /^(\d{1,9}) \S+$/;

/**
 * Detects whether a database has lost its data. The first write gives the database an epoch, which is a random id.
 * Every read and every script compares the epoch, so that no process mistakes lost records for a new fleet.
 */
export class Epoch {
  readonly fresh = `${SCHEMA} ${randomBytes(16).toString("hex")}`;
  readonly #where: string;
  readonly #root: string;
  readonly #warn: (message: string) => void;
  /**
   * The path of a file with the epoch that this host found last. The next process compares it with the epoch of the
   * database. The fleet also works without the file.
   */
  readonly #notePath: string;
  #known: string | undefined;
  #noted: string | undefined;

  /** @param where the URL of the database without secrets, which identifies the database on this host */
  constructor(where: string, root: string, warn: (message: string) => void) {
    this.#where = where;
    this.#root = root;
    this.#warn = warn;
    this.#notePath = join(root, `redis-${createHash("sha256").update(where).digest("hex").slice(0, 12)}.json`);
  }

  get known(): string | undefined {
    return this.#known;
  }

  /**
   * The epoch that the database must have, or undefined if no epoch is known. Read this property before you send a
   * request, because its value may change during the request.
   */
  get expected(): string | undefined {
    return this.#known ?? this.#noted;
  }

  /** Reads the epoch from the file. Call this before you open a connection. */
  recall(): void {
    if (this.#noted !== undefined) return;
    try {
      const { epoch } = JSON.parse(readFileSync(this.#notePath, "utf8")) as { epoch?: unknown };
      if (typeof epoch === "string") this.#noted = epoch;
    } catch (error) {
      if (systemCode(error) !== "ENOENT") this.#warn(`${quote(this.#notePath)} cannot be read: ${reason(error)}.`);
    }
  }

  /** Compares the epoch in the database with the expected one. @throws FleetError `FLEET_STATE_LOST` */
  meet(found: string | null, expected: string | undefined): void {
    if (found === null) {
      if (expected !== undefined) throw this.lost("it is empty");
      return;
    }
    if (found === this.#known) return;
    const schema = Number(EPOCH.exec(found)?.[1] ?? 0);
    if (schema > SCHEMA) throw newerError(this.#where, schema);
    if (schema === 0) throw corruptError(this.#where, "its epoch is not valid");
    if (schema < SCHEMA) throw olderError(this.#where, "Use another database, or another fleet in it (?fleet=NAME).");
    if (this.expected !== undefined && this.expected !== found) throw this.lost("its epoch has changed");
    this.#known = found;
    if (this.#noted === undefined) this.#write(found);
    this.#noted = found;
  }

  #write(epoch: string): void {
    const path = this.#notePath;
    try {
      replaceStateFile(this.#root, path, { database: this.#where, epoch });
    } catch (error) {
      this.#warn(`${quote(path)} cannot be written, so a loss of Redis's data would go unnoticed: ${reason(error)}.`);
    }
  }

  lost(how: string): FleetError {
    const path = this.#notePath;
    const message = `The Redis database ${quote(this.#where)} lost its data (${how}). Servers and sessions that it does not know may still exist.`;
    return new FleetError("FLEET_STATE_LOST", message, {
      suggestions: [
        "Restore a backup of the Redis database.",
        "To continue without the lost data and end the servers of this host, run the next command.",
        `mv ${shellQuote(path)} ${shellQuote(`${path}.lost`)} && copilotfleet doctor --fix`,
      ],
    });
  }
}
