import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { FleetError, isFleetError, systemCode } from "../base/errors.js";
import { type Registry, SCHEMA } from "../base/server.js";
import { isObject } from "../base/values/text.js";
import { corruptError, newerError } from "./failures.js";
import { scratchName, syncNow } from "./file/durable.js";
import { isFull, mediumError } from "./file/failures.js";
import { freeReserve } from "./file/reserve.js";
import type { SqliteRows } from "./sqlite/rows.js";

/** The servers of this host. */
export interface RegistryStore {
  /**
   * The newest committed registry of this host. It is empty before the first commit. An unreadable store throws
   * instead.
   */
  read(): Promise<Registry>;

  /**
   * Changes the registry atomically. `change` edits a private draft. It must be synchronous and free of side effects,
   * because it runs again if another writer commits first. If it throws, nothing is written. Resolves with the return
   * value of the last run.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when no commit succeeded within the deadline, `FLEET_STATE_UNWRITABLE` when
   * the medium cannot be written to (full disk, read-only, I/O error). The old state is then intact.
   */
  update<T>(change: (draft: Registry) => T): Promise<T>;

  /** Replaces a registry that cannot be read, and keeps its damaged files. Absent if the medium repairs itself. */
  rebuild?(registry: Registry): Promise<void>;
}

/**
 * The registry of this host, in a file of its own, so that a command that only lists servers loads no database. A
 * writer replaces the file while it holds the database's lock for writing, which nobody can take from a suspended
 * process.
 */
export class RegistryFile implements RegistryStore {
  readonly #path: string;
  readonly #rows: SqliteRows;
  readonly #checkFolder: () => void;

  constructor(root: string, rows: SqliteRows, checkFolder: () => void) {
    this.#path = join(root, "registry.json");
    this.#rows = rows;
    this.#checkFolder = checkFolder;
  }

  async read(): Promise<Registry> {
    this.#checkFolder();
    return this.#parse(this.#load());
  }

  async update<T>(change: (draft: Registry) => T): Promise<T> {
    return await this.#rows.alone(() => {
      const draft = this.#parse(this.#load());
      const before = textOf(draft);
      const result = change(draft);
      if (result instanceof Promise) {
        result.catch(() => "the caller gets the next error instead");
        throw new FleetError(
          "FLEET_INTERNAL",
          "A change to the store must be synchronous; this one returned a promise.",
        );
      }
      const after = textOf(draft);
      if (after !== before) this.#replace(after);
      return result;
    });
  }

  async rebuild(registry: Registry): Promise<void> {
    await this.#rows.alone(() => this.#replace(textOf(registry)));
  }

  #load(): string {
    try {
      return readFileSync(this.#path, "utf8");
    } catch (error) {
      if (systemCode(error) === "ENOENT") return textOf({ servers: {} });
      throw mediumError("read", this.#path, error);
    }
  }

  #parse(text: string): Registry {
    try {
      const { schema, ...registry } = JSON.parse(text) as Registry & { schema: number };
      if (schema > SCHEMA) throw newerError(this.#path, schema);
      if (!isObject(registry.servers)) throw new Error("it has no servers");
      return withoutPrototype(registry);
    } catch (error) {
      if (isFleetError(error)) throw error;
      const detail = error instanceof Error ? error.message : String(error);
      throw corruptError(this.#path, detail, [
        "copilotfleet doctor --fix # rebuilds the registry from the folders and processes of the servers",
        `Or put a backup in place as ${this.#path}.`,
      ]);
    }
  }

  #replace(text: string): void {
    const folder = dirname(this.#path);
    const temp = join(folder, scratchName("tmp"));
    try {
      const file = openSync(temp, "wx", 0o600);
      try {
        writeFileSync(file, text);
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      renameSync(temp, this.#path);
      syncNow(folder);
    } catch (error) {
      if (!isFull(error) || !freeReserve(folder)) throw mediumError("write", this.#path, error);
      this.#replace(text);
    } finally {
      rmSync(temp, { force: true });
    }
  }
}

function textOf(registry: Registry): string {
  return `${JSON.stringify({ schema: SCHEMA, ...registry })}\n`;
}

/** Removes the prototype of `servers`, because a server id may be `__proto__` or `constructor`. */
export function withoutPrototype(registry: Registry): Registry {
  return { ...registry, servers: Object.assign(Object.create(null), registry.servers) };
}
