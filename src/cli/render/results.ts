import type { UsageRow, UsageTotal } from "../../accounts/ledger.js";
import type { LimitView } from "../../accounts/limits.js";
import { ERRORS, FleetError, quote, type Suggestion } from "../../base/errors.js";
import type { Lease } from "../../base/session.js";
import { USER_LIMITS, type UserLimit } from "../../base/user-limits.js";
import { countOf, printable, printableLines } from "../../base/values/text.js";
import type { ConfigView, ValueOrigin, ValueView } from "../../config/load/inspect.js";
import type { Check, CheckLevel } from "../../fleet/doctor/checks.js";
import type { Written } from "../../fleet/init.js";
import type { RouteView } from "../../hosts/options.js";
import { isLaunchLine, NOT_RESTRICTED, timeOfLine, withoutTime } from "../../runtime/files/server-log.js";
import type { Stopped } from "../../servers/stop.js";
import type { GcResult } from "../../sessions/gc/collect.js";
import { errorText, renderSuggestion } from "../report.js";
import { colour } from "./colour.js";
import {
  type Column,
  type List,
  renderAge,
  renderBytes,
  renderState,
  renderTable,
  SERVER,
  SESSION,
  terminalWidth,
  USER,
} from "./table.js";

/** A problem of the configuration, as the `--json` output contains it. */
export interface ConfigProblem {
  code: string;
  message: string;
  suggestions: string[];
}

export function problemView({ code, message, suggestions }: FleetError): ConfigProblem {
  return { code, message, suggestions: [...suggestions] };
}

/** Sets exit code 3 if the configuration has problems. Prints them on standard error, but not with `--json`. */
export function reportProblems({ problems }: ConfigView, isJson: boolean): void {
  if (problems.length === 0) return;
  process.exitCode = 3;
  if (isJson) return;
  for (const problem of problems) process.stderr.write(`Error: ${errorText(problem)}\n`);
}

/** Renders a value for people and scripts: a text without quotes, and everything else as JSON. */
export function renderValue(value: unknown): string {
  return typeof value === "string" ? printable(value) : printable(JSON.stringify(value));
}

export function renderValues(values: readonly (readonly [string, ValueView])[]): string {
  const columns = [
    { heading: "KEY", cut: "middle" },
    { heading: "VALUE", cut: "end" },
    { heading: "ORIGIN", cut: "middle" },
  ] as const;
  const rows = values.map(([name, { value, origin }]) => [name, renderValue(value), renderOrigin(origin)]);
  return renderTable(columns, rows);
}

function renderOrigin({ from, name, line }: ValueOrigin): string {
  if (name === null) return colour.dim(from);
  return `${from} ${printable(name)}${line === null ? "" : `:${line}`}`;
}

/** Reports what `init` did, and the next step. */
export function renderWritten({ path, trusted, overriddenBy, replaces }: Written, reply: string | null): string {
  return [
    ...(reply === null ? [] : [`The model replied: ${printable(reply)}`]),
    `Wrote ${printable(path)}`,
    ...(trusted === null ? [] : ["You trust this file until its content changes (copilotfleet trust)."]),
    ...(replaces === null ? [] : [`Here, it takes the place of ${printable(replaces)}`]),
    ...overriddenBy.map((name) => `${name} is set, and takes precedence over the file.`),
    "Next: copilotfleet create --user alice --prompt hello",
  ].join("\n");
}

const MARKS = {
  ok: colour.green("ok    "),
  warning: colour.yellow("WARN  "),
  failed: colour.red("FAIL  "),
  skipped: colour.yellow("SKIP  "),
} as const;

const INDENT = 24;
/** How many items of a check are shown. `--json` lists all items. */
const MOST_ITEMS = 20;

/** Renders a check: its result, a line for each thing that it found, and the suggested repair. */
export function renderCheck({ name, level, detail, items, fix, fixed }: Check): string {
  const mark = fixed ? colour.yellow("mended") : MARKS[level];
  const more = items.length - MOST_ITEMS;
  const lines = [
    ...items.slice(0, MOST_ITEMS).map((item) => `- ${item}`),
    ...(more > 0 ? [`- and ${more} more, which --json lists`] : []),
    ...(fix === null ? [] : [renderSuggestion(fix)]),
  ];
  return [
    `${mark} ${name.padEnd(INDENT - 8)} ${wrap(detail)}`,
    ...lines.map((line) => " ".repeat(INDENT) + wrap(line)),
  ].join("\n");
}

/** Renders how many checks have each result, and names those that need attention. */
export function renderSummary(checks: readonly Check[]): string {
  const named = (level: CheckLevel, word: string) => {
    const names = checks.filter((check) => check.level === level).map(({ name }) => name);
    return names.length === 0 ? [] : [`${names.length} ${word} (${names.join(", ")})`];
  };
  const good = checks.filter(({ level }) => level === "ok").length;
  const parts = [...named("failed", "failed"), ...named("warning", "with a warning"), ...named("skipped", "skipped")];
  return [`${checks.length} checks: ${good} ok`, ...parts].join(", ");
}

/** Breaks a text between words so that it fits on a terminal. The lines after the first are indented. */
function wrap(text: string): string {
  const width = Math.max(terminalWidth() - INDENT, 30);
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.length - 1;
    const longer = lines[last] === "" ? word : `${lines[last]} ${word}`;
    if (lines[last] === "" || longer.length <= width) lines[last] = longer;
    else lines.push(word);
  }
  return lines.join(`\n${" ".repeat(INDENT)}`);
}

const COLUMNS: Column[] = [
  SESSION,
  { heading: "OWNER", cut: "middle" },
  { heading: "AGE", yields: 1 },
  { heading: "SIZE", yields: 2 },
];

/** Renders the result as one line, so that a mail from cron is short. In a dry run, a table of sessions precedes it. */
export function renderGc(result: GcResult): string {
  const { deleted, dryRun } = result;
  if (!dryRun || deleted.length === 0) return summarize(result);
  const rows = deleted.map(({ id, owner, ageMs, bytes }) => [id, owner, renderAge(ageMs), renderBytes(bytes)]);
  return `${renderTable(COLUMNS, rows)}\n${summarize(result)}`;
}

function summarize({ deleted, skipped, freedBytes, dryRun, servers, remains }: GcResult): string {
  const verb = dryRun ? "would delete" : "deleted";
  const parts = [
    `${verb} ${countOf(deleted.length, "session")} (${renderBytes(freedBytes)})`,
    `skipped ${skipped.length}${counts(skipped.map(({ reason }) => reason))}`,
    `${dryRun ? "would clear" : "cleared"} ${countOf(servers.length, "server")}${counts(servers.map(({ action }) => action))}`,
  ];
  if (remains.length > 0) {
    const what = `${countOf(remains.length, "remain")} of takeovers`;
    parts.push(`${dryRun ? "would clear" : "cleared"} ${what}${counts(remains.map(({ kind }) => kind))}`);
  }
  return `gc: ${parts.join(", ")}`;
}

function counts(words: readonly string[]): string {
  const kinds = [...new Set(words)].sort();
  const each = kinds.map((kind) => `${words.filter((word) => word === kind).length} ${kind}`);
  return each.length === 0 ? "" : ` (${each.join(", ")})`;
}

/** One error for each session whose record cannot be read. Such a session stays, however old it is. */
export function unreadableErrors({ unreadable }: GcResult): FleetError[] {
  return unreadable.map(
    ({ id, code, message, suggestions }) =>
      new FleetError(code, `gc left session ${quote(id)} alone, because its record cannot be read. ${message}`, {
        suggestions: suggestions as Suggestion[],
      }),
  );
}

/** The exit code reports unreadable records and failed deletions, because nobody may read the output of a cron job. */
export function exitCodeOfGc({ skipped, unreadable }: GcResult): number {
  const [first] = unreadable;
  if (first !== undefined) return ERRORS[first.code].exit;
  return skipped.some(({ reason }) => reason === "failed") ? ERRORS.FLEET_STATE_UNWRITABLE.exit : 0;
}

/** Explains how to end a detached lease. The user has to fill in the token, which the fleet does not store. */
export function waysToEnd(sessionId: string): string {
  return (
    `Release the lease: copilotfleet unlock ${sessionId} --token TOKEN (the token that lock printed)\n` +
    `If the token is lost: copilotfleet lock ${sessionId} --user USER --steal --reason lost -- true`
  );
}

export function renderLease(lease: Lease | null): string {
  if (lease === null) return "No lease.";
  const table = renderTable(
    [
      SESSION,
      { heading: "HOLDER", cut: "middle" },
      { heading: "AGE", yields: 1 },
      "ENDS IN",
      { heading: "FENCE", yields: 3 },
      { heading: "TAKEN OVER SINCE", yields: 2, cut: "end" },
    ],
    [
      [
        lease.sessionId,
        lease.holder,
        renderAge(Math.max(0, Date.now() - Date.parse(lease.acquiredAt))),
        renderAge(lease.remainingMs),
        lease.fence,
        lease.stealReason && printable(lease.stealReason),
      ],
    ],
  );
  return lease.detached === true ? `${table}\n\n${waysToEnd(lease.sessionId)}` : table;
}

const UNKNOWN_TIME = "-".padEnd("2026-01-01T00:00:00.000Z".length);

interface LogStyle {
  /** Begin each line with the name of its server, padded to `width`. */
  prefix?: { name: string; width: number } | undefined;
  /** Begin each line with its time, or with `-` if the time is not known. */
  timestamps: boolean;
}

export function renderLogLine(line: string, { prefix, timestamps }: LogStyle): string {
  // A terminal must not interpret control characters that an agent made the server print. A pipe gets the exact log.
  const plain = process.stdout.isTTY === true ? printableLines(line) : line;
  const text = isLaunchLine(plain) ? plain.replace(NOT_RESTRICTED, (words) => colour.yellow(words)) : plain;
  const timed = timestamps ? `${timeOfLine(text) ?? UNKNOWN_TIME} ${withoutTime(text)}` : text;
  return prefix === undefined ? timed : `${colour.cyan(`${prefix.name.padEnd(prefix.width)} |`)} ${timed}`;
}

/** Splits the bytes of a log into lines. Yields an incomplete line only when the bytes end. */
export async function* linesOf(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const piece of pieces) {
    const lines = (rest + decoder.decode(piece, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
  if (rest !== "") yield rest;
}

const HOST: Column = { heading: "HOST", cut: "middle" };

export function renderRoute({ user, host, serverId, server, reason }: RouteView): string {
  const hostColumn = host === null ? null : HOST;
  return renderTable(
    [USER, hostColumn, SERVER, { heading: "URL", yields: 1 }, "STATE", { heading: "REASON", cut: "end" }],
    [[user, host, serverId, server?.url ?? null, renderState(server?.state ?? "stopped"), reason]],
  );
}

export function renderStopped(stopped: readonly Stopped[]): string {
  if (stopped.length === 0) return "Nothing to stop.";
  const withHost = new Set(stopped.map(({ hostName }) => hostName)).size > 1;
  return renderTable(
    [
      SERVER,
      withHost ? { heading: "HOST", yields: 1, cut: "middle" } : null,
      "OUTCOME",
      { heading: "CUT", cut: "end" },
    ],
    stopped.map(({ id, hostName = null, outcome, cut }) => [id, hostName, renderState(outcome), cut.join(", ")]),
  );
}

/** The exit code for a cut turn, even with `--force`. If no turn was cut, that for an unreachable host; otherwise 0. */
export function exitCodeOf(stopped: readonly Stopped[], away: readonly string[] = []): number {
  if (stopped.some(({ cut }) => cut.length > 0)) return ERRORS.FLEET_TURN_CUT.exit;
  return away.length > 0 ? ERRORS.FLEET_HOST_AWAY.exit : 0;
}

const NAMES: Readonly<Record<UserLimit, string>> = {
  turnsPerMinute: "turns per minute",
  concurrentTurns: "turns at once",
  sessions: "sessions",
  connections: "connections",
  tokensPerDay: "tokens per day",
  tokensPerMonth: "tokens per month",
};

/** One line for each limit. */
export function renderLimits({ limits, used, sources }: LimitView): string {
  return renderTable(
    ["LIMIT", "USED", "AT MOST", { heading: "SET BY", cut: "end" }],
    USER_LIMITS.map((name) => [
      NAMES[name],
      used[name] ?? "-",
      limits[name] ?? "unlimited",
      sourceOf(sources[name], name),
    ]),
  );
}

function sourceOf(source: LimitView["sources"][UserLimit], name: UserLimit): string {
  if (source === "user") return "limit set";
  if (source === "default") return `limits.default.${name}`;
  return printable(`limits.groups.${source.slice("group:".length)}`);
}

/** The list of `usage`. Its first column contains the user, day, model or other key of each group. */
export const USAGE: List<UsageRow> = {
  kind: "usage",
  idOf: ({ key }) => key ?? "",
  columns: [
    { heading: "KEY", field: "key", cut: "middle" },
    { heading: "TURNS", field: "turns" },
    { heading: "REQUESTS", field: "requests", yields: 3 },
    { heading: "INPUT", field: "inputTokens" },
    { heading: "CACHED", field: "cacheReadTokens", yields: 4 },
    { heading: "OUTPUT", field: "outputTokens" },
    { heading: "CREDITS", field: "credits", yields: 2 },
    { heading: "COST", field: "cost", yields: 1 },
  ],
};

/** The lines below the table: an empty line and the totals. */
export function renderTotal({ turns, requests, inputTokens, outputTokens }: UsageTotal): string[] {
  const tokens = `${inputTokens ?? "-"} input and ${outputTokens ?? "-"} output tokens`;
  return ["", `${countOf(turns, "turn")}, ${countOf(requests, "model request")}, ${tokens}`];
}
