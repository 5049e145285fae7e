import { randomBytes } from "node:crypto";
import { FleetError, quote } from "../../errors.js";
import { SCHEMA } from "../store.js";
import { corruptError, newerError } from "./failures.js";
import type { Note } from "./note.js";

const EPOCH = /^(\d{1,9}) \S+$/;

/**
 * Tells whether a database is still the one it was. Its first write gives it an epoch, a random id; a database that lost
 * its data has none, or another. Every read and every script compares, so that a lost registry is never taken for an
 * empty pool, by this process or, through a note in the state folder, by a later one on this host.
 */
export class Epoch {
  /** What the database gets if it has none yet. */
  readonly fresh = `${SCHEMA} ${randomBytes(16).toString("hex")}`;
  readonly #where: string;
  readonly #note: Note;
  #known: string | undefined;
  /** What the note says. */
  #noted: string | undefined;

  /** @param where The database, for messages. */
  constructor(where: string, note: Note) {
    this.#where = where;
    this.#note = note;
  }

  /** As the database had it when it was met first; undefined while it has none. */
  get known(): string | undefined {
    return this.#known;
  }

  /**
   * What the database has to say: the epoch as it was met before, or undefined while none is known. To be taken before the
   * question is sent, since others may make the first write meanwhile.
   */
  get expected(): string | undefined {
    return this.#known ?? this.#noted;
  }

  /** Looks up what this host met before. To be done before a connection is opened. */
  recall(): void {
    this.#noted ??= this.#note.read();
  }

  /**
   * Compares with what the database says.
   *
   * @throws FleetError `FLEET_STATE_LOST` when it is another one than before, `FLEET_STATE_NEWER`, `FLEET_STATE_CORRUPT`.
   */
  meet(found: string | null, expected: string | undefined): void {
    if (found === null) {
      if (expected !== undefined) throw this.lost("it is empty");
      return;
    }
    if (found === this.#known) return;
    const schema = Number(EPOCH.exec(found)?.[1] ?? 0);
    if (schema > SCHEMA) throw newerError(this.#where, schema);
    if (schema === 0) throw corruptError(this.#where, "its epoch is not one");
    if (this.expected !== undefined && this.expected !== found) throw this.lost("it is not what it was");
    this.#known = found;
    if (this.#noted === undefined) this.#note.write(found);
    this.#noted = found;
  }

  lost(how: string): FleetError {
    const { path } = this.#note;
    return new FleetError(
      "FLEET_STATE_LOST",
      `The Redis database ${quote(this.#where)} lost its data (${how}): servers and sessions that it does not know may be there.`,
      {
        suggestions: [
          "Restore a backup of the Redis database.",
          `Or go on without what was lost, ending the servers of this host: mv ${path} ${path}.lost && copilotfleet doctor --fix`,
        ],
      },
    );
  }
}
