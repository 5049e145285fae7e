import {
  accessSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { createRequire } from "node:module";
import { constants as constantsOf } from "node:os";
import { basename, dirname, join } from "node:path";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { getSystemErrorMap } from "node:util";
import type { DatabaseSyncInstance, StatementSyncInstance } from "@photostructure/sqlite";
import { FleetError, isFleetError, quote, systemCode } from "../../base/errors.js";
import { SCHEMA } from "../../base/server.js";
import { lockHolder } from "../../base/system/file-locks.js";
import { shellQuote } from "../../base/values/text.js";
import { busyError, corruptError, newerError } from "../failures.js";
import { scratchName, syncNow } from "../file/durable.js";
import { isFull, mediumError } from "../file/failures.js";
import { freeReserve, keepReserve } from "../file/reserve.js";
import type { AnyKind, Changes, Kind, Row, Rows, Selection } from "../rows.js";

export interface FileOptions {
  /**
   * `FULL`: a commit survives a power failure. `NORMAL`: it survives the death of the process, and a power failure may
   * undo the last commits (sqlite.org/pragma.html, "synchronous").
   */
  synchronous: "FULL" | "NORMAL";
  /** Throws if the folder of the file is unsafe. Called before each use. */
  checkFolder: () => void;
  /** Like `checkFolder`, but creates the folder if necessary. Called before a write opens the file. */
  ensureFolder: () => void;
  /** How long a call waits for another process that holds the database, in milliseconds. Default: 5 s. */
  patienceMs?: number;
}

interface UseOptions {
  isDurable?: boolean;
  isVital?: boolean;
}

const PATIENCE_MS = 5_000;
/** How long SQLite itself waits for another process, in milliseconds. This process is blocked during the wait. */
const BLOCKED_MS = 10;
/** How often a commit also deletes the records that have ended, in milliseconds. */
const SWEEP_MS = 60_000;
/** How long calls can follow one another before the other work of this process gets a turn, in milliseconds. */
const TURN_MS = 10;

/** The beginning of the name of a damaged file that was replaced. */
export const DAMAGED = "corrupt-";

let turnBegan = Number.NEGATIVE_INFINITY;

/** A call of SQLite blocks this process, so a loop of calls would let nothing else run. */
async function giveTurn(): Promise<void> {
  if (performance.now() - turnBegan < TURN_MS) return;
  await nextTurn();
  turnBegan = performance.now();
}

/** Loaded only when a database is opened. */
const load = createRequire(import.meta.url);

interface Open {
  database: DatabaseSyncInstance;
  inode: number;
  statements: Map<string, StatementSyncInstance>;
}

/** An SQLite file. All processes of one host may use it at the same time. */
export class SqliteFile {
  readonly path: string;
  readonly #tables: string;
  readonly #options: FileOptions;
  readonly #underWay = new Set<Promise<unknown>>();
  #open: Open | undefined;

  /**
   * @param path the file, which the first write creates
   * @param tables the statements that create its tables
   */
  constructor(path: string, tables: string, options: FileOptions) {
    this.path = path;
    this.#tables = tables;
    this.#options = options;
  }

  /**
   * Runs `work` in one transaction. While another process holds the database, waits without blocking this process.
   *
   * @param options.isDurable whether the commit, and all commits before it, survive a power failure even if
   * `synchronous` is `NORMAL`
   * @param options.isVital whether the commit may use the reserve of a full disk
   * @returns the result of `work`; undefined if it only reads, and there is no file so far
   * @throws FleetError as the methods of {@link Rows}
   */
  async use<T>(action: "read" | "write", work: (sql: Sql) => T, options: UseOptions = {}): Promise<T | undefined> {
    const using = this.#use(action, work, options);
    this.#underWay.add(using);
    try {
      return await using;
    } finally {
      this.#underWay.delete(using);
    }
  }

  async #use<T>(action: "read" | "write", work: (sql: Sql) => T, options: UseOptions): Promise<T | undefined> {
    await giveTurn();
    const until = performance.now() + this.#patienceMs;
    for (;;) {
      const done = this.#attempt(action, work, until, options);
      if (done !== null) return done.result;
      await sleep(1 + Math.random() * 9);
    }
  }

  /** Like {@link use}, but blocks this process during the wait. */
  useNow<T>(action: "read" | "write", work: (sql: Sql) => T): T | undefined {
    const until = performance.now() + this.#patienceMs;
    for (;;) {
      const done = this.#attempt(action, work, until);
      if (done !== null) return done.result;
    }
  }

  /** Erases what was deleted: from the file of commits, which still contains it, and from the copy. */
  async eraseDeleted(): Promise<void> {
    const until = performance.now() + this.#patienceMs;
    for (;;) {
      const open = await this.use("read", () => this.#open);
      if (open === undefined) return;
      const { busy } = open.database.prepare("PRAGMA wal_checkpoint(TRUNCATE)").get();
      if (busy === 0) break;
      // Another process is reading.
      if (performance.now() > until) throw this.#busy();
      await sleep(1 + Math.random() * 9);
    }
    if (existsSync(this.#copyPath)) await this.copy();
  }

  /** Looks for damage in the whole file. @returns what it found; null for an undamaged file, or none */
  async damage(): Promise<string | null> {
    // An open connection may have pages in memory that are damaged on the disk.
    this.#forget();
    try {
      const rows = await this.use("read", (sql) => sql("PRAGMA quick_check(1)").all());
      const text = rows?.[0]?.quick_check ?? "ok";
      return text === "ok" ? null : text;
    } catch (error) {
      if (!isFleetError(error, "FLEET_STATE_CORRUPT")) throw error;
      return error.message;
    }
  }

  /** Replaces the copy from which {@link restore} restores the file. */
  async copy(): Promise<void> {
    const copying = this.#copy();
    this.#underWay.add(copying);
    try {
      await copying;
    } finally {
      this.#underWay.delete(copying);
    }
  }

  async #copy(): Promise<void> {
    const found = await this.damage();
    if (found !== null) throw this.corrupt(found);
    const open = await this.use("read", () => this.#open);
    if (open === undefined) return;
    const temp = join(dirname(this.path), scratchName("tmp"));
    try {
      closeSync(openSync(temp, "wx", 0o600));
      const { backup } = load("@photostructure/sqlite") as typeof import("@photostructure/sqlite");
      await backup(open.database, temp);
      syncNow(temp);
      renameSync(temp, this.#copyPath);
    } catch (error) {
      throw this.#explained("write", error);
    } finally {
      rmSync(temp, { force: true });
    }
  }

  /**
   * Replaces a damaged file by its last copy or, if there is none, by nothing.
   *
   * @returns the new path of the damaged file, and when the copy was made; null without a copy
   */
  restore(): { keptAs: string; copiedAt: Date | null } {
    this.#forget();
    const time = new Date().toISOString().replaceAll(/[:.]/g, "-");
    const keptAs = join(dirname(this.path), `${DAMAGED}${basename(this.path)}-${time}`);
    const temp = join(dirname(this.path), scratchName("tmp"));
    const copiedAt = statSync(this.#copyPath, { throwIfNoEntry: false })?.mtime ?? null;
    try {
      if (copiedAt !== null) copyFileSync(this.#copyPath, temp);
      renameSync(this.path, keptAs);
      // They belong to the damaged file.
      for (const end of ["-wal", "-shm"]) rmSync(`${this.path}${end}`, { force: true });
      if (copiedAt !== null) renameSync(temp, this.path);
      syncNow(dirname(this.path));
    } catch (error) {
      throw mediumError("write", this.path, error);
    } finally {
      rmSync(temp, { force: true });
    }
    return { keptAs, copiedAt };
  }

  /** The error of damage that a read has found. */
  corrupt(detail: string, cause?: unknown): FleetError {
    return corruptError(this.path, detail, "copilotfleet doctor --fix", cause);
  }

  get #copyPath(): string {
    return `${this.path}.copy`;
  }

  /** Waits for the uses under way. The next use opens the file again. */
  async close(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    this.#forget();
  }

  #forget(): void {
    this.#open?.database.close();
    this.#open = undefined;
  }

  get #patienceMs(): number {
    return this.#options.patienceMs ?? PATIENCE_MS;
  }

  /** @returns null if another process holds the database and the time is not up */
  #attempt<T>(
    action: "read" | "write",
    work: (sql: Sql) => T,
    until: number,
    { isDurable = false, isVital = false }: UseOptions = {},
  ): { result: T | undefined } | null {
    let open: Open | null = null;
    try {
      open = this.#opened(action);
      if (isDurable) open?.database.exec("PRAGMA synchronous = FULL");
      return { result: open === null ? undefined : transact(open, action, work) };
    } catch (error) {
      if ((isVital || action === "read") && isDiskFull(error) && freeReserve(dirname(this.path))) return null;
      if (!isBusy(error)) throw this.#explained(action, error);
      if (performance.now() < until) return null;
      throw this.#busy();
    } finally {
      if (isDurable) open?.database.exec(`PRAGMA synchronous = ${this.#options.synchronous}`);
    }
  }

  #opened(action: "read" | "write"): Open | null {
    this.#options.checkFolder();
    const inode = statSync(this.path, { throwIfNoEntry: false })?.ino;
    if (this.#open !== undefined && this.#open.inode === inode) return this.#open;
    this.#forget();
    if (action === "write") this.#options.ensureFolder();
    if (inode === undefined && action === "read") return null;
    // SQLite gives its other files the mode of this one.
    if (inode === undefined) closeSync(openSync(this.path, "a", 0o600));
    if (action === "write") keepReserve(dirname(this.path));
    const open = this.#connect(action);
    this.#open = open;
    return open;
  }

  #connect(action: "read" | "write"): Open {
    const { DatabaseSync } = load("@photostructure/sqlite") as typeof import("@photostructure/sqlite");
    const { ino: inode } = statSync(this.path);
    const database = new DatabaseSync(this.path, { timeout: BLOCKED_MS });
    try {
      database.exec("PRAGMA journal_mode = WAL");
      database.exec(`PRAGMA synchronous = ${this.#options.synchronous}; PRAGMA secure_delete = ON`);
      const open = { database, inode, statements: new Map() };
      if (!this.#hasTables(open)) transact(open, "write", () => this.#hasTables(open) || this.#makeTables(open));
      return open;
    } catch (error) {
      database.close();
      // SQLite needs a file beside the database even for reading. On a read-only disk, it cannot create that file.
      const isReadable = action === "read" && sqliteCode(error) === CANNOT_OPEN && !existsSync(`${this.path}-wal`);
      if (!isReadable) throw error;
      const unchanging = `${pathToFileURL(this.path).href}?immutable=1`;
      // No file has this inode, so the next use tries again whether the disk can be written.
      return { database: new DatabaseSync(unchanging, { readOnly: true }), inode: 0, statements: new Map() };
    }
  }

  #hasTables({ database }: Open): boolean {
    const { user_version: schema } = database.prepare("PRAGMA user_version").get();
    if (schema > SCHEMA) throw newerError(this.path, schema);
    return schema !== 0;
  }

  #makeTables({ database }: Open): void {
    database.exec(`${this.#tables}; PRAGMA user_version = ${SCHEMA}`);
  }

  #busy(): FleetError {
    const pid = lockHolder(`${this.path}-shm`, WRITE_LOCK);
    const holder = pid === null ? "another process" : `process ${pid}`;
    const error = busyError(
      this.path,
      `is held by ${holder}, which did not release it within ${this.#patienceMs / 1_000} s`,
    );
    if (pid === null) return error;
    return error.reworded(({ message }) => ({
      message,
      suggestions: [`Look at process ${pid}: it may be suspended.`],
    }));
  }

  #explained(action: "read" | "write", error: unknown): unknown {
    const code = sqliteCode(error);
    if (code === null) return mediumError(action, this.path, error);
    const text = error instanceof Error ? error.message : String(error);
    if (code === CORRUPT || code === NOT_A_DATABASE) return this.corrupt(text, error);
    // Any other code shows an error in our statements.
    if (!MEDIUM.has(code)) return error;
    const cause = systemError(error, this.path);
    if (cause !== null) return mediumError(action, this.path, cause);
    const verb = action === "read" ? "read" : "written";
    return new FleetError("FLEET_STATE_UNWRITABLE", `The state in ${quote(this.path)} cannot be ${verb}: ${text}.`, {
      suggestions: [code === FULL ? `df -h ${shellQuote(this.path)}` : `ls -ld ${shellQuote(this.path)}`],
      cause: error,
    });
  }
}

const TABLES = `
CREATE TABLE rows (
  kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, ends INTEGER,
  data TEXT NOT NULL CHECK (json_valid(data)),
  PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX row_ids ON rows (kind, id);
CREATE INDEX ending ON rows (ends) WHERE ends IS NOT NULL;
CREATE TABLE found (
  kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, id TEXT NOT NULL,
  PRIMARY KEY (kind, name, value, id)
) WITHOUT ROWID;
CREATE INDEX found_of ON found (kind, id);
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO facts VALUES ('version', 0), ('clock', '');
`;

export interface RowsOptions extends Omit<FileOptions, "synchronous"> {
  /** Whether a commit must survive a power failure, and not only the death of a process. */
  durable: boolean;
  /** The database's clock, in milliseconds. */
  now: () => number;
  /**
   * Names the clock. Once another clock has written to the database, all records with an end have ended. For a clock
   * that counts from the start of the machine, this is the boot.
   */
  clockId: string;
}

/** Rows in an SQLite file. */
export class SqliteRows implements Rows {
  readonly file: SqliteFile;
  readonly #options: RowsOptions;
  #sweptAt = Number.NEGATIVE_INFINITY;

  /** @param path the file, which the first commit creates */
  constructor(path: string, { durable, ...options }: RowsOptions) {
    this.#options = { durable, ...options };
    this.file = new SqliteFile(path, TABLES, { ...options, synchronous: durable ? "FULL" : "NORMAL" });
  }

  async read<T extends object>(kind: Kind<T>, ids: readonly string[]): Promise<(Row<T> | null)[]> {
    const found = new Map<string, { version: number; data: string }>();
    await this.file.use("read", (sql) => {
      const rows = sql(
        "SELECT id, version, data FROM rows WHERE kind = ? AND id IN (SELECT value FROM json_each(?)) AND (ends IS NULL OR ends > ?)",
      ).all(kind.name, JSON.stringify(ids), this.#now(sql));
      for (const row of rows) found.set(row.id, row);
    });
    return ids.map((id) => {
      const row = found.get(id);
      if (row === undefined) return null;
      return { id, version: String(row.version), record: this.#parse<T>(kind, id, row.data) };
    });
  }

  async commit(changes: Changes): Promise<boolean> {
    const commit = (sql: Sql) => {
      this.#sweep(sql);
      const now = this.#options.now();
      for (const { kind, id, from } of changes) {
        const row = sql("SELECT version, ends FROM rows WHERE kind = ? AND id = ?").get(kind.name, id);
        const version = row === undefined || (row.ends !== null && row.ends <= now) ? null : String(row.version);
        if (version !== (from?.version ?? null)) return false;
      }
      const next = sql("UPDATE facts SET value = value + 1 WHERE name = 'version' RETURNING value AS version").get();
      for (const { kind, id, to } of changes) {
        const indexes = Object.entries(kind.by);
        if (indexes.length > 0) sql("DELETE FROM found WHERE kind = ? AND id = ?").run(kind.name, id);
        if (to === null) {
          sql("DELETE FROM rows WHERE kind = ? AND id = ?").run(kind.name, id);
          continue;
        }
        const values = [kind.name, id, next.version, kind.endsAt(to), JSON.stringify(to)];
        sql("INSERT OR REPLACE INTO rows (kind, id, version, ends, data) VALUES (?, ?, ?, ?, ?)").run(...values);
        for (const [name, find] of indexes) {
          const value = find(to);
          if (value !== null) sql("INSERT INTO found VALUES (?, ?, ?, ?)").run(kind.name, name, value, id);
        }
      }
      return true;
    };
    const isVital = changes.every(({ kind, to }) => kind.isVital || to === null);
    return (await this.file.use("write", commit, { isVital })) ?? false;
  }

  async erase({ name }: AnyKind, id: string): Promise<boolean> {
    const erased = await this.file.use("write", (sql) => {
      sql("DELETE FROM found WHERE kind = ? AND id = ?").run(name, id);
      return sql("DELETE FROM rows WHERE kind = ? AND id = ? RETURNING id").get(name, id) !== undefined;
    });
    return erased ?? false;
  }

  async ids<T extends object>(
    kind: Kind<T>,
    { after = "", limit = -1, ...selection }: Selection = {},
  ): Promise<string[]> {
    const { from, values } = selected(kind, selection);
    const rows = await this.file.use("read", (sql) =>
      sql(`SELECT id FROM ${from} AND id > ? ORDER BY id LIMIT ?`).all(...values, after, limit),
    );
    return (rows ?? []).map(({ id }) => id as string);
  }

  async count<T extends object>(kind: Kind<T>, selection: Pick<Selection, "by" | "value"> = {}): Promise<number> {
    const { from, values } = selected(kind, selection);
    const row = await this.file.use("read", (sql) => sql(`SELECT count(*) AS count FROM ${from}`).get(...values));
    return row?.count ?? 0;
  }

  /** Runs `work` while no other process can commit. It must be short, because it blocks this process. */
  async alone<T>(work: () => T): Promise<T> {
    return (await this.file.use("write", work, { isVital: true })) as T;
  }

  async now(): Promise<number> {
    return this.#options.now();
  }

  async close(): Promise<void> {
    await this.file.close();
  }

  #parse<T extends object>({ name }: Kind<T>, id: string, data: string): T {
    try {
      return JSON.parse(data) as T;
    } catch (error) {
      throw this.file.corrupt(`the ${name} ${quote(id)} is not valid JSON`, error);
    }
  }

  /** The time by which records have ended. If an earlier clock set their ends, all that have one have ended. */
  #now(sql: Sql): number {
    const clock = sql("SELECT value FROM facts WHERE name = 'clock'").get().value;
    return clock === this.#options.clockId ? this.#options.now() : Number.MAX_SAFE_INTEGER;
  }

  #sweep(sql: Sql): void {
    if (performance.now() - this.#sweptAt < SWEEP_MS) return;
    this.#sweptAt = performance.now();
    for (const { kind, id } of sql("DELETE FROM rows WHERE ends <= ? RETURNING kind, id").all(this.#now(sql)))
      sql("DELETE FROM found WHERE kind = ? AND id = ?").run(kind, id);
    sql("UPDATE facts SET value = ? WHERE name = 'clock'").run(this.#options.clockId);
  }
}

function selected({ name }: { name: string }, { by, value = "" }: Selection): { from: string; values: string[] } {
  if (by === undefined) return { from: "rows WHERE kind = ?", values: [name] };
  return { from: "found WHERE kind = ? AND name = ? AND value = ?", values: [name, by, value] };
}

/** The columns of a row, as the statement names them. */
// biome-ignore lint/suspicious/noExplicitAny: only the statement knows the types of its columns
type Columns = any;

interface Statement {
  get(...values: unknown[]): Columns;
  all(...values: unknown[]): Columns[];
  run(...values: unknown[]): unknown;
}
/** Prepares a statement, or takes it from the cache. */
export type Sql = (text: string) => Statement;

function transact<T>({ database, statements }: Open, action: "read" | "write", work: (sql: Sql) => T): T {
  const sql: Sql = (text) => {
    const statement = statements.get(text) ?? database.prepare(text);
    statements.set(text, statement);
    return statement;
  };
  // IMMEDIATE takes the lock for writing at once. A transaction that reads first and writes later can fail in between.
  database.exec(action === "write" ? "BEGIN IMMEDIATE" : "BEGIN");
  try {
    const result = work(sql);
    database.exec("COMMIT");
    return result;
  } catch (error) {
    // SQLite may have ended the transaction by itself, for example because the disk is full.
    if (database.isTransaction) database.exec("ROLLBACK");
    throw error;
  }
}

/** Result codes (sqlite.org/rescode.html). */
const [BUSY, LOCKED, READONLY, IO_ERROR, CORRUPT, FULL, CANNOT_OPEN, NOT_A_DATABASE] = [
  5, 6, 8, 10, 11, 13, 14, 26,
] as const;

/** The texts of the codes (sqlite3_errstr). */
const CODES: ReadonlyMap<string, number> = new Map([
  ["database is locked", BUSY],
  ["database table is locked", LOCKED],
  ["attempt to write a readonly database", READONLY],
  ["disk I/O error", IO_ERROR],
  ["database disk image is malformed", CORRUPT],
  ["database or disk is full", FULL],
  ["unable to open database file", CANNOT_OPEN],
  ["file is not a database", NOT_A_DATABASE],
]);

/** The codes that say that the medium refused a call. */
const MEDIUM: ReadonlySet<number> = new Set([READONLY, IO_ERROR, FULL, CANNOT_OPEN]);

/** The error of the system call that made a call of SQLite fail; null if it is not known. */
function systemError(error: unknown, path: string): unknown {
  const number = error instanceof Error && "systemErrno" in error ? Number(error.systemErrno) : 0;
  const [name = ""] = getSystemErrorMap().get(-number) ?? [];
  const known = sqliteCode(error) === FULL ? "ENOSPC" : name;
  // SQLite may report an earlier error that has nothing to do with the disk or this process.
  const [found] = [...getSystemErrorMap()].find(([, [code]]) => code === known && MEDIUM_ERRORS.has(code)) ?? [];
  if (found !== undefined) return Object.assign(new Error(known, { cause: error }), { code: known, errno: found });
  try {
    for (const place of [dirname(path), path]) accessSync(place, constants.R_OK | constants.W_OK);
    return null;
  } catch (denied) {
    return denied;
  }
}

const MEDIUM_ERRORS: ReadonlySet<string> = new Set(["EACCES", "EDQUOT", "EIO", "EMFILE", "ENFILE", "ENOSPC", "EROFS"]);

/** The primary result code of an error of SQLite; null for any other error. */
function sqliteCode(error: unknown): number | null {
  if (!(error instanceof Error)) return null;
  if ("errcode" in error && typeof error.errcode === "number") return error.errcode & 0xff;
  // Errors of some calls have only the text.
  return systemCode(error) === "ERR_SQLITE_ERROR" ? (CODES.get(error.message) ?? null) : null;
}

/** SQLite needs some space even for reading, for a file that it shares with other processes. */
function isDiskFull(error: unknown): boolean {
  const hasErrno = error instanceof Error && "systemErrno" in error && error.systemErrno === constantsOf.errno.ENOSPC;
  return isFull(error) || sqliteCode(error) === FULL || (sqliteCode(error) !== null && hasErrno);
}

function isBusy(error: unknown): boolean {
  const code = sqliteCode(error);
  return code === BUSY || code === LOCKED;
}

/** The byte of the file `-shm` that a writer locks (sqlite.org/walformat.html, "WAL Locks"). */
const WRITE_LOCK = 120;
