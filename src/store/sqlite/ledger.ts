import { countsOf, hourOf, type LedgerLine, type UsageBy, type UsagePart, type UsageQuery } from "../../base/usage.js";
import type { Renaming } from "../ports.js";
import { type FileOptions, type Sql, SqliteFile } from "./rows.js";

/*
 * The names of users and sessions stand only in the table `names`. Everything else has their numbers, so a purge changes
 * the row of each name, and no line. After that, the same name gets a new number.
 *
 * `sums` adds up the lines of each hour. It has no null in its key, because SQLite treats nulls in a key as different.
 */
const TABLES = `
CREATE TABLE names (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL);
CREATE INDEX names_by_name ON names (kind, name);
CREATE TABLE lines (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, begun INTEGER NOT NULL, at INTEGER NOT NULL,
  user INTEGER NOT NULL, session INTEGER NOT NULL, model TEXT NOT NULL, token TEXT NOT NULL, rest TEXT NOT NULL,
  turns INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER, output INTEGER, cached INTEGER, credits REAL,
  UNIQUE (id, begun)
);
CREATE INDEX lines_by_time ON lines (at);
CREATE TABLE sums (
  user INTEGER NOT NULL, hour INTEGER NOT NULL, session INTEGER NOT NULL, model TEXT NOT NULL, token TEXT NOT NULL,
  turns INTEGER NOT NULL, requests INTEGER NOT NULL, input INTEGER, output INTEGER, cached INTEGER, credits REAL,
  PRIMARY KEY (user, hour, session, model, token)
) WITHOUT ROWID;
`;

const COUNTS = ["turns", "requests", "input", "output", "cached", "credits"];
/** Stands for null in the columns `model` and `token`. */
const NONE = "";
const HOUR_MS = 3_600_000;

/** For each grouping, what the lines are grouped by, and the key of a group. */
const KEYS: Record<UsageBy, { of: string; shown: string }> = {
  user: { of: "0", shown: "names.name" },
  session: { of: "session", shown: "(SELECT name FROM names WHERE id = part)" },
  model: { of: "0", shown: `nullif(model, '${NONE}')` },
  token: { of: "token", shown: `nullif(part, '${NONE}')` },
  day: { of: "at / 86400000", shown: "strftime('%Y-%m-%d', part * 86400, 'unixepoch')" },
};

const ADD_SUM = `
INSERT INTO sums VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET ${COUNTS.map(
  (count) =>
    `${count} = CASE WHEN excluded.${count} IS NULL THEN ${count} ELSE coalesce(${count}, 0) + excluded.${count} END`,
).join(", ")}`;

/** The ledger of one host, in an SQLite file of its own, because it grows, and its writes need not survive a power failure. */
export class SqliteLedger {
  readonly file: SqliteFile;

  constructor(path: string, options: Omit<FileOptions, "synchronous">) {
    this.file = new SqliteFile(path, TABLES, { ...options, synchronous: "NORMAL" });
  }

  /** Appends all lines, or none. A line that is already there, by its id and whether it is the first half, counts only once. */
  append(lines: readonly LedgerLine[]): void {
    this.file.useNow("write", (sql) => {
      for (const line of lines) {
        const { id, at, user, sessionId, model, tokenId, kind, host, ms, outcome } = line;
        const { turns, requests, inputTokens, outputTokens, cacheReadTokens, credits } = countsOf(line);
        const counts = [turns, requests, inputTokens, outputTokens, cacheReadTokens, credits];
        const [userId, session] = [numberOf(sql, "user", user), numberOf(sql, "session", sessionId)];
        const [named, token] = [model ?? NONE, tokenId ?? NONE];
        const rest = JSON.stringify({ kind, host, ms, outcome });
        const begun = outcome === "begun" ? 1 : 0;
        const added = sql(
          "INSERT INTO lines VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING number",
        ).get(id, begun, Date.parse(at), userId, session, named, token, rest, ...counts);
        if (added !== undefined) sql(ADD_SUM).run(userId, hourOf(at), session, named, token, ...counts);
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
      const columns = `user, session, model, token, ${COUNTS.join(", ")}`;
      const summed = COUNTS.map((count) => `sum(${count}) AS ${count}`).join(", ");
      return sql(`
WITH used AS (
  SELECT hour * ${HOUR_MS} AS at, ${columns} FROM sums WHERE hour >= ? AND hour < ?${ofUser}
  UNION ALL
  SELECT at, ${columns} FROM lines WHERE (at >= ? AND at < ? OR at >= ? AND at < ?)${ofUser}
), grouped AS (SELECT user, model, ${KEYS[by].of} AS part, ${summed} FROM used GROUP BY 1, 2, 3)
SELECT names.name AS user, nullif(model, '${NONE}') AS model, ${KEYS[by].shown} AS key, ${summed}
FROM grouped JOIN names ON names.id = user GROUP BY 1, 2, 3`).all(
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
        `SELECT coalesce(sum(coalesce(input, 0) + coalesce(output, 0)), 0) AS tokens FROM sums
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
      sql(`SELECT number, lines.id AS id, at, users.name AS user, sessions.name AS session, model, token, rest,
input, output, cached, credits FROM lines
JOIN names AS users ON users.id = user JOIN names AS sessions ON sessions.id = session ORDER BY number LIMIT ?`).all(
        limit,
      ),
    );
    const lines = (rows ?? []).map(({ id, at, user, session, model, token, rest, input, output, cached, credits }) => ({
      id,
      at: new Date(at).toISOString(),
      user,
      sessionId: session,
      model: model === NONE ? null : model,
      tokenId: token === NONE ? null : token,
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
    });
  }

  /** Deletes the lines of the hours before a time, in milliseconds since the epoch. */
  async deleteBefore(time: number): Promise<void> {
    const hour = Math.floor(time / HOUR_MS);
    await this.file.use("write", (sql) => {
      sql("DELETE FROM lines WHERE at < ?").run(hour * HOUR_MS);
      sql("DELETE FROM sums WHERE hour < ?").run(hour);
      sql("DELETE FROM names WHERE id NOT IN (SELECT user FROM sums UNION SELECT session FROM sums)").run();
    });
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}

function numberOf(sql: Sql, kind: "user" | "session", name: string): number {
  const known = sql("SELECT max(id) AS id FROM names WHERE kind = ? AND name = ?").get(kind, name);
  return known.id ?? sql("INSERT INTO names VALUES (NULL, ?, ?) RETURNING id").get(kind, name).id;
}
