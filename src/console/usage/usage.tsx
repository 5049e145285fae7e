import { useCallback, useMemo, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { type Report, USAGE_BY } from "../api/types.js";
import { Chart, type ChartLine, type Data, LAST_DAYS } from "../charts/chart.js";
import { ChooseUser } from "../parts/choose-user.js";
import { amount, exact, usePolled } from "../parts/hooks.js";
import { Choice, Empty, Loaded, More, Name, PageFrame, Tiles } from "../parts/notice.js";
import { type Column, number, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import { LimitsOf } from "./limits.js";

type UsageBy = Report["by"];
type Row = Report["usage"][number];

const EVERY_MS = 15_000;
const PERIODS = [
  ["24h", "24 hours"],
  ["7d", "7 days"],
  ["30d", "30 days"],
] as const;
type Period = (typeof PERIODS)[number][0];

/**
 * The page with usage. Callers see their own usage. An operator sees that of all users, or of the user in the address.
 * For a single user, the page also shows the limits.
 */
export function Usage({ caller, id }: PageProps) {
  const isAdmin = caller.scopes.includes("admin");
  const user = isAdmin ? id : caller.user;
  const title = user === "" ? "Usage of all users" : isAdmin ? `Usage of ${user}` : "Usage";
  return (
    <PageFrame title={title} head={isAdmin && <ChooseUser page="usage" user={user} />}>
      {user !== "" && <LimitsOf key={user} user={user} isAdmin={isAdmin} />}
      <UsageOf key={`usage of ${user}`} user={user} isAdmin={isAdmin} />
    </PageFrame>
  );
}

function UsageOf({ user, isAdmin }: { user: string; isAdmin: boolean }) {
  const ways = user === "" ? USAGE_BY : USAGE_BY.filter((each) => each !== "user");
  const [by, setBy] = useState<UsageBy>(ways[0] ?? "session");
  const [period, setPeriod] = useState<Period>("24h");
  const load = useCallback(
    async (signal: AbortSignal) => {
      const whose = user === "" ? "" : `&user=${encodeURIComponent(user)}`;
      const report = async (way: UsageBy, since: Period) =>
        await ask<Report>("GET", `/v1/usage?by=${way}&since=${since}${whose}`, { signal });
      const [table, days] = await Promise.all([report(by, period), report("day", period === "24h" ? "7d" : period)]);
      return { table, days };
    },
    [user, by, period],
  );
  const polled = usePolled(load, EVERY_MS);
  return (
    <>
      <div class="section-head">
        <h2>Used</h2>
        <Choice label="Time" value={period} values={PERIODS} choose={setPeriod} />
        <Choice label="By" value={by} values={ways} choose={setBy} />
      </div>
      <Loaded of={polled}>
        {({ table, days }) => (
          <>
            <Total {...table} />
            <DayChart days={days} />
            {table.usage.length === 0 ? (
              <Empty title="Nothing was used in this time." />
            ) : (
              <UsageTable report={table} linksUsers={isAdmin} />
            )}
          </>
        )}
      </Loaded>
    </>
  );
}

function Total({ total, from }: Report) {
  const shown = (count: number | null) => (count === null ? UNREPORTED : amount(count));
  return (
    <>
      <p class="quiet since">
        Since <time dateTime={from}>{exact(from)}</time>
      </p>
      <Tiles
        tiles={[
          ["Turns", amount(total.turns)],
          ["Model requests", amount(total.requests)],
          ["Input tokens", shown(total.inputTokens)],
          ["Output tokens", shown(total.outputTokens)],
          ["Credits", shown(total.credits)],
          ...(total.cost === null ? [] : [["Cost", amount(total.cost)] as const]),
        ]}
      />
    </>
  );
}

const LINES: readonly ChartLine[] = [
  { title: "input and output", colour: "accent" },
  { title: "output", colour: "good" },
];
const COMPACT = new Intl.NumberFormat("en", { notation: "compact" });

/** A chart with a bar for each day of the report. The report has no row for a day without usage. */
function DayChart({ days: { usage } }: { days: Report }) {
  const data = useMemo<Data>(
    () => ({
      times: usage.map(({ key }) => Date.parse(`${key}T00:00:00Z`) / 1_000),
      lines: [usage.map(tokensOf), usage.map(({ outputTokens }) => outputTokens)],
    }),
    [usage],
  );
  if (usage.length === 0) return null;
  return (
    <div class="day-chart">
      <Chart
        title="Tokens by day"
        lines={LINES}
        data={data}
        show={amount}
        tick={(value) => COMPACT.format(value)}
        axis={LAST_DAYS}
        missing={UNREPORTED}
        isCount
        isBars
      />
    </div>
  );
}

function tokensOf({ inputTokens, outputTokens }: Row): number | null {
  return inputTokens === null && outputTokens === null ? null : (inputTokens ?? 0) + (outputTokens ?? 0);
}

/** The text for a number that was neither reported nor estimated. */
const UNREPORTED = "not reported";
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
function UsageTable({ report: { by, usage }, linksUsers }: { report: Report; linksUsers: boolean }) {
  const rows = by === "day" ? usage.toReversed() : usage.slice(0, MOST);
  const hasCost = rows.some(({ cost }) => cost !== null);
  const columns: Column<Row>[] = [
    {
      title: TITLES[by],
      by: ({ key }) => key,
      cell: ({ key }) =>
        key === null ? (
          <span class="quiet">{NO_KEY[by]}</span>
        ) : (
          <Name
            class="cell-title"
            text={key}
            href={by === "user" && linksUsers ? `#/usage/${encodeURIComponent(key)}` : undefined}
          />
        ),
    },
    number("Turns", ({ turns }) => turns),
    number("Requests", ({ requests }) => requests),
    number("Input tokens", ({ inputTokens }) => inputTokens, { none: UNREPORTED }),
    number("Output tokens", ({ outputTokens }) => outputTokens, { none: UNREPORTED }),
    number("Cached tokens", ({ cacheReadTokens }) => cacheReadTokens, { none: UNREPORTED }),
    number("Credits", ({ credits }) => credits, { none: UNREPORTED }),
    ...(hasCost ? [number<Row>("Cost", ({ cost }) => cost, { none: UNREPORTED })] : []),
  ];
  return (
    <>
      <Table key={by} label={`Usage by ${by}`} columns={columns} rows={rows} idOf={({ key }) => `${key}`} />
      {rows.length < usage.length && (
        <More>
          The {MOST} largest of {amount(usage.length)} rows are shown.
        </More>
      )}
    </>
  );
}
