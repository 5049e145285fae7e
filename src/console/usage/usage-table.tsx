import { Name } from "../parts/name.js";
import { amount } from "../parts/show.js";
import { type Column, Table } from "../parts/table.js";
import type { Counts, Report, Row, UsageBy } from "./types.js";

/** The text for a number that was neither reported nor estimated. */
export const UNREPORTED = "not reported";
/** How many rows to show. The report begins with the largest rows. */
const MOST = 200;

const TITLES: Readonly<Record<UsageBy, string>> = {
  user: "User",
  session: "Session",
  model: "Model",
  token: "Token",
  day: "Day",
};
/** The text for a row without a key. */
const NO_KEY: Readonly<Record<UsageBy, string>> = {
  user: "no user",
  session: "no session",
  model: "model not reported",
  token: "no token",
  day: "no day",
};

/** The rows of a report. With `linksUsers`, the name of a user links to the usage of this user. */
export function UsageTable({ report: { by, usage }, linksUsers }: { report: Report; linksUsers: boolean }) {
  const rows = by === "day" ? usage.toReversed() : usage.slice(0, MOST);
  const hasCost = rows.some(({ cost }) => cost !== null);
  const columns: Column<Row>[] = [
    {
      title: TITLES[by],
      by: ({ key }) => key,
      cell: ({ key }) =>
        key === null ? (
          <span class="quiet">{NO_KEY[by]}</span>
        ) : by === "user" && linksUsers ? (
          <a href={`#/usage/${encodeURIComponent(key)}`}>
            <Name class="cell-title" text={key} />
          </a>
        ) : (
          <Name class="cell-title" text={key} />
        ),
    },
    number("Turns", ({ turns }) => turns),
    number("Requests", ({ requests }) => requests),
    number("Input tokens", ({ inputTokens }) => inputTokens),
    number("Output tokens", ({ outputTokens }) => outputTokens),
    number("Cached tokens", ({ cacheReadTokens }) => cacheReadTokens),
    number("Credits", ({ credits }) => credits),
    ...(hasCost ? [number("Cost", ({ cost }) => cost)] : []),
  ];
  return (
    <>
      <Table key={by} label={`Usage by ${by}`} columns={columns} rows={rows} idOf={({ key }) => `${key}`} />
      {rows.length < usage.length && (
        <p class="more">
          <span class="quiet">
            The {MOST} largest of {amount(usage.length)} rows are shown.
          </span>
        </p>
      )}
    </>
  );
}

function number(title: string, of: (counts: Counts) => number | null): Column<Row> {
  return {
    title,
    isNumber: true,
    by: of,
    cell: (row) => {
      const value = of(row);
      return value === null ? <span class="quiet">{UNREPORTED}</span> : amount(value);
    },
  };
}
