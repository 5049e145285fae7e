import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseObject } from "../../base/values/text.js";
import { readIfThere } from "../../store/file/failures.js";
import { replaceStateFile } from "../../store/file/state-folder.js";
import { eventsFile } from "../../store/sqlite/events.js";
import type { Sql, SqliteFile } from "../../store/sqlite/rows.js";
import type { Line } from "./line.js";

/** The end of a log, to which the next line is chained: the number of the last line, and its hash. */
export interface Head {
  seq: number;
  hash: string;
}

/** The head of a log without lines. */
export const NO_LINES: Head = { seq: 0, hash: "" };

export interface Stored {
  seq: number;
  text: string;
}

/** The time of a line is trusted once it is at least this far in the past, in milliseconds. */
const SETTLED_MS = 24 * 3_600_000;

const opened = new Map<string, AuditLog>();

/** The lines of this host's audit log, to which any number of processes write. */
export class AuditLog {
  readonly #root: string;
  readonly #headNote: string;
  readonly #file: SqliteFile;

  private constructor(root: string) {
    this.#root = root;
    // Outside of the database, so that a loss of the database is detected.
    this.#headNote = join(root, "events-head.json");
    this.#file = eventsFile(root);
  }

  /** The log in this state folder. All parts of a process share it, so that it is opened once. */
  static of(root: string): AuditLog {
    const log = opened.get(root) ?? new AuditLog(root);
    opened.set(root, log);
    return log;
  }

  /**
   * Appends lines.
   *
   * @param build makes the lines that follow a head. It must have no side effects.
   * @param options.isDurable whether the lines, and all lines before them, must survive a loss of power
   * @throws FleetError as the methods of `Rows`. None of the lines is then in the log.
   */
  async append(build: (head: Head) => Line[], options: { isDurable: boolean }): Promise<void> {
    const append = (sql: Sql) => {
      const lines = build(this.#headIn(sql));
      for (const line of lines)
        sql("INSERT INTO events VALUES (?, ?, ?)").run(line.seq, Date.parse(line.at), JSON.stringify(line));
      return lines.at(-1);
    };
    const last = await this.#file.use("write", append, options);
    if (last !== undefined) this.#note({ seq: last.seq, hash: last.hash });
  }

  /**
   * The newest line, or the line in `events-head.json` if that is later. In that case, lines were lost, and the log
   * continues after the line in the note, so that the gap stays detectable.
   */
  head(): Head {
    return this.#file.useNow("read", (sql) => this.#headIn(sql)) ?? this.readNote() ?? NO_LINES;
  }

  /** The lines after a number, in their order, at most `limit`. */
  async linesAfter(seq: number, limit: number): Promise<Stored[]> {
    const select = "SELECT seq, line AS text FROM events WHERE seq > ? ORDER BY seq LIMIT ?";
    return (await this.#file.use("read", (sql) => sql(select).all(seq, limit))) ?? [];
  }

  /** The number of the first line from a time on, in milliseconds since the epoch; null if there is none. */
  async firstSince(time: number): Promise<number | null> {
    const row = await this.#file.use("read", (sql) =>
      sql("SELECT min(seq) AS seq FROM events WHERE at >= ?").get(time),
    );
    return row?.seq ?? null;
  }

  /** Replaces the text of a line, unless it has changed. */
  async replace({ seq, text }: Stored, by: string): Promise<void> {
    await this.#file.use("write", (sql) =>
      sql("UPDATE events SET line = ? WHERE seq = ? AND line = ?").run(by, seq, text),
    );
  }

  /** Overwrites what was replaced or deleted. */
  async eraseDeleted(): Promise<void> {
    await this.#file.eraseDeleted();
  }

  /** How much of the disk the lines use, in bytes. */
  async bytes(): Promise<number> {
    return (await this.#file.use("read", bytesIn)) ?? 0;
  }

  /**
   * The number of the last line that exceeds the bounds; null if none does. The newest line never does.
   *
   * The clock may jump ahead. So the age of a line does not count from now. It counts from the newest time of a line
   * that is at least a day in the past. If the clock is wrong for less than a day, no line becomes too old.
   */
  async excess(
    { maxBytes, retentionMs }: { maxBytes: number; retentionMs: number },
    nowMs: number,
  ): Promise<number | null> {
    const found = await this.#file.use("read", (sql) => {
      const { first, last } = sql("SELECT min(seq) AS first, max(seq) AS last FROM events").get();
      if (first === null) return null;
      const { settled } = sql("SELECT max(at) AS settled FROM events WHERE at <= ?").get(nowMs - SETTLED_MS);
      const oldest = (settled ?? Number.NEGATIVE_INFINITY) - retentionMs;
      const { young } = sql("SELECT min(seq) AS young FROM events WHERE at >= ?").get(oldest);
      const bytes = bytesIn(sql);
      const surplus = bytes <= maxBytes ? 0 : Math.ceil((last - first + 1) * (1 - maxBytes / bytes));
      const seq = Math.min(last - 1, Math.max((young ?? last) - 1, first + surplus - 1));
      return seq < first ? null : seq;
    });
    return found ?? null;
  }

  async deleteUntil(seq: number): Promise<void> {
    await this.#file.use("write", (sql) => sql("DELETE FROM events WHERE seq <= ?").run(seq));
  }

  /** The head in `events-head.json`; null if that file is missing or not readable. */
  readNote(): Head | null {
    const text = readIfThere(this.#headNote, () => readFileSync(this.#headNote, "utf8"));
    const { seq, hash } = (text === undefined ? undefined : parseObject(text)) ?? {};
    return typeof seq === "number" && typeof hash === "string" ? { seq, hash } : null;
  }

  #headIn(sql: Sql): Head {
    const noted = this.readNote() ?? NO_LINES;
    const newest = sql("SELECT seq, line FROM events ORDER BY seq DESC LIMIT 1").get();
    if (newest === undefined || noted.seq > newest.seq) return noted;
    const { hash } = parseObject(newest.line) ?? {};
    // If the last line is damaged, continue after it with a hash that no line has, so that the break is detected.
    return { seq: newest.seq, hash: typeof hash === "string" ? hash : "damaged" };
  }

  /**
   * Writes the number and the hash of the newest line to `events-head.json`. Ignores failures, because this note only
   * serves to detect that the log has lost its last lines.
   */
  #note(head: Head): void {
    try {
      replaceStateFile(this.#root, this.#headNote, head);
    } catch {
      // The next write notes a newer line.
    }
  }
}

function bytesIn(sql: Sql): number {
  const [pages, free, size] = ["page_count", "freelist_count", "page_size"].map(
    (name): number => sql(`PRAGMA ${name}`).get()[name],
  );
  return ((pages ?? 0) - (free ?? 0)) * (size ?? 0);
}
