import {
  addUsage,
  countsOf,
  hourOf,
  type LedgerLine,
  NO_USAGE,
  type UsageBy,
  type UsageCounts,
  type UsagePart,
  type UsageQuery,
} from "../../base/usage.js";
import type { Renaming } from "../usage.js";
import { type FileOptions, type Sql, SqliteFile } from "./rows.js";

/*
 * The names of users, sessions, models and tokens stand only in the table `names`. Everything else has their numbers,
 * so a purge changes the row of each name, and no line. After that, the same name gets a new number. 0 stands for null.
 *
 * A process deletes the lines that it has sent, up to a number. So no later line may get that number again:
 * AUTOINCREMENT.
 *
 * `sums` adds up the lines of each hour, and `totals` the same without the sessions, because few queries need these.
 */
const COUNTS = ["turns", "requests", "input", "output", "cached", "credits"];
const COUNT_COLUMNS =
  "turns INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER, output INTEGER, cached INTEGER, credits REAL";
const TABLES = `
CREATE TABLE names (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL);
CREATE INDEX names_by_name ON names (kind, name);
CREATE TABLE lines (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, begun INTEGER NOT NULL, at INTEGER NOT NULL,
  user INTEGER NOT NULL, session INTEGER NOT NULL, model INTEGER NOT NULL, token INTEGER NOT NULL, rest TEXT NOT NULL,
  ${COUNT_COLUMNS},
  UNIQUE (id, begun)
);
CREATE INDEX lines_by_time ON lines (at);
CREATE TABLE sums (
  hour INTEGER NOT NULL, user INTEGER NOT NULL, session INTEGER NOT NULL, model INTEGER NOT NULL, token INTEGER NOT NULL,
  ${COUNT_COLUMNS},
  PRIMARY KEY (hour, user, session, model, token)
) WITHOUT ROWID;
CREATE TABLE totals (
  user INTEGER NOT NULL, hour INTEGER NOT NULL, model INTEGER NOT NULL, token INTEGER NOT NULL,
  ${COUNT_COLUMNS},
  PRIMARY KEY (user, hour, model, token)
) WITHOUT ROWID;
CREATE INDEX totals_by_hour ON totals (hour);
`;

const HOUR_MS = 3_600_000;

/** For each grouping, what the rows are grouped by besides user and model, and the key of a group. */
const KEYS: Record<UsageBy, { part: string; shown: string }> = {
  user: { part: "0", shown: nameOf("user") },
  session: { part: "session", shown: nameOf("part") },
  model: { part: "0", shown: nameOf("model") },
  token: { part: "token", shown: nameOf("part") },
  day: { part: "at / 86400000", shown: "strftime('%Y-%m-%d', part * 86400, 'unixepoch')" },
};

function nameOf(column: string): string {
  return `(SELECT name FROM names WHERE id = ${column})`;
}

function adding(table: "sums" | "totals", keys: readonly string[]): string {
  const columns = [...keys, ...COUNTS];
  const added = COUNTS.map((count) => `${count} = ${plus(count)}`);
  return `INSERT INTO ${table} (${columns.join(", ")}) VALUES (${columns.map(() => "?").join(", ")})
ON CONFLICT DO UPDATE SET ${added.join(", ")}`;
}

/** Adds numbers of which each may be unknown. */
function plus(count: string): string {
  return `CASE WHEN excluded.${count} IS NULL THEN ${count} ELSE coalesce(${count}, 0) + excluded.${count} END`;
}

const ADD_SUM = adding("sums", ["hour", "user", "session", "model", "token"]);
const ADD_TOTAL = adding("totals", ["hour", "user", "model", "token"]);

/**
 * The ledger of one host, in an SQLite file of its own, because it grows, and its writes need not survive a power
 * failure.
 */
export class SqliteLedger {
  readonly file: SqliteFile;

  constructor(path: string, options: Omit<FileOptions, "synchronous">) {
    this.file = new SqliteFile(path, TABLES, { ...options, synchronous: "NORMAL" });
  }

  /**
   * Appends all lines, or none. A line that is already there, by its id and whether it is the first half, counts only
   * once.
   */
  append(lines: readonly LedgerLine[]): void {
    this.file.useNow("write", (sql) => {
      // Most lines of one call have the same names and the same sums.
      const numbers = new Map<string, number>();
      const numberOf = (kind: NameKind, name: string | null) => {
        const known = numbers.get(`${kind} ${name}`) ?? findNumber(sql, kind, name);
        numbers.set(`${kind} ${name}`, known);
        return known;
      };
      const sums = new Map<string, { keys: number[]; counts: UsageCounts }>();
      for (const line of lines) {
        const { id, at, kind, host, ms, outcome } = line;
        const counts = countsOf(line);
        const [user, session] = [numberOf("user", line.user), numberOf("session", line.sessionId)];
        const [model, token] = [numberOf("model", line.model), numberOf("token", line.tokenId)];
        const rest = JSON.stringify({ kind, host, ms, outcome });
        const begun = outcome === "begun" ? 1 : 0;
        const added = sql(
          "INSERT INTO lines VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING number",
        ).get(id, begun, Date.parse(at), user, session, model, token, rest, ...columnsOf(counts));
        if (added === undefined) continue;
        const keys = [hourOf(at), user, session, model, token];
        const sum = sums.get(keys.join()) ?? { keys, counts: { ...NO_USAGE } };
        sums.set(keys.join(), sum);
        addUsage(sum.counts, counts);
      }
      for (const { keys, counts } of sums.values()) {
        const [hour, user, , model, token] = keys;
        sql(ADD_SUM).run(...keys, ...columnsOf(counts));
        sql(ADD_TOTAL).run(hour, user, model, token, ...columnsOf(counts));
      }
    });
  }

  /** Adds up the lines from `from` until before `to`: whole hours by their sums, and the rest line by line. */
  async read({ from, to, by, user }: UsageQuery): Promise<UsagePart[]> {
    const [first, end] = [Math.ceil(from / HOUR_MS), Math.floor(to / HOUR_MS)];
    // If the period contains no whole hour, read all lines of it.
    const [begin, last] = first < end ? [first * HOUR_MS, end * HOUR_MS] : [to, to];
    const rows = await this.file.use("read", (sql) => {
      const ofUser = user === undefined ? "" : " AND user IN (SELECT id FROM names WHERE kind = 'user' AND name = ?)";
      const users = user === undefined ? [] : [user];
      const columns = `user, ${by === "session" ? "session, " : ""}model, token, ${COUNTS.join(", ")}`;
      const summed = COUNTS.map((count) => `sum(${count}) AS ${count}`).join(", ");
      return sql(`
WITH used AS (
  SELECT hour * ${HOUR_MS} AS at, ${columns} FROM ${by === "session" ? "sums" : "totals"} WHERE hour >= ? AND hour < ?${ofUser}
  UNION ALL
  SELECT at, ${columns} FROM lines WHERE (at >= ? AND at < ? OR at >= ? AND at < ?)${ofUser}
), grouped AS (SELECT user, model, ${KEYS[by].part} AS part, ${summed} FROM used GROUP BY 1, 2, 3)
SELECT ${nameOf("user")} AS user, ${nameOf("model")} AS model, ${KEYS[by].shown} AS key, ${summed}
FROM grouped GROUP BY 1, 2, 3`).all(
        ...[begin / HOUR_MS, last / HOUR_MS, ...users],
        ...[from, begin, last, to, ...users],
      );
    });
    return (rows ?? []).map(({ input, output, cached, ...row }) => ({
      ...row,
      inputTokens: input,
      outputTokens: output,
      cacheReadTokens: cached,
    }));
  }

  /** The input and output tokens of a user since the start of an hour, in milliseconds since the epoch. */
  async tokensSince(user: string, from: number): Promise<number> {
    const row = await this.file.use("read", (sql) =>
      sql(
        `SELECT coalesce(sum(coalesce(input, 0) + coalesce(output, 0)), 0) AS tokens FROM totals
WHERE user IN (SELECT id FROM names WHERE kind = 'user' AND name = ?) AND hour >= ?`,
      ).get(user, Math.floor(from / HOUR_MS)),
    );
    return row?.tokens ?? 0;
  }

  /** Gives users and sessions other names, everywhere. */
  async rename({ users, sessions }: Renaming): Promise<void> {
    await this.file.use("write", (sql) => {
      for (const [kind, names] of [
        ["user", users],
        ["session", sessions],
      ] as const)
        for (const [name, other] of names)
          sql("UPDATE names SET name = ? WHERE kind = ? AND name = ?").run(other, kind, name);
    });
  }

  /** The lines that were appended first, and the number of the last of them. */
  async oldest(limit: number): Promise<{ lines: LedgerLine[]; last: number }> {
    const rows = await this.file.use("read", (sql) =>
      sql(`SELECT number, id, at, ${["user", "session", "model", "token"].map((name) => `${nameOf(`lines.${name}`)} AS ${name}`).join(", ")}, rest,
input, output, cached, credits FROM lines ORDER BY number LIMIT ?`).all(limit),
    );
    const lines = (rows ?? []).map(({ id, at, user, session, model, token, rest, input, output, cached, credits }) => ({
      id,
      at: new Date(at).toISOString(),
      user,
      sessionId: session,
      model,
      tokenId: token,
      inputTokens: input,
      outputTokens: output,
      cacheReadTokens: cached,
      credits,
      ...JSON.parse(rest),
    }));
    return { lines, last: rows?.at(-1)?.number ?? 0 };
  }

  /** Deletes lines by their numbers, and all sums. */
  async deleteUntil(number: number): Promise<void> {
    await this.file.use("write", (sql) => {
      sql("DELETE FROM lines WHERE number <= ?").run(number);
      sql("DELETE FROM sums").run();
      sql("DELETE FROM totals").run();
      deleteUnusedNames(sql, "lines");
    });
  }

  /** Deletes the lines of the hours before a time, in milliseconds since the epoch. */
  async deleteBefore(time: number): Promise<void> {
    const hour = Math.floor(time / HOUR_MS);
    await this.file.use("write", (sql) => {
      sql("DELETE FROM lines WHERE at < ?").run(hour * HOUR_MS);
      sql("DELETE FROM sums WHERE hour < ?").run(hour);
      sql("DELETE FROM totals WHERE hour < ?").run(hour);
      deleteUnusedNames(sql, "sums");
    });
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}

function columnsOf({ turns, requests, inputTokens, outputTokens, cacheReadTokens, credits }: UsageCounts) {
  return [turns, requests, inputTokens, outputTokens, cacheReadTokens, credits];
}

function deleteUnusedNames(sql: Sql, table: "lines" | "sums"): void {
  const used = ["user", "session", "model", "token"].map((column) => `SELECT ${column} FROM ${table}`).join(" UNION ");
  sql(`DELETE FROM names WHERE id NOT IN (${used})`).run();
}

type NameKind = "user" | "session" | "model" | "token";

function findNumber(sql: Sql, kind: NameKind, name: string | null): number {
  if (name === null) return 0;
  const known = sql("SELECT max(id) AS id FROM names WHERE kind = ? AND name = ?").get(kind, name);
  return known.id ?? sql("INSERT INTO names VALUES (NULL, ?, ?) RETURNING id").get(kind, name).id;
}
