import { countOf } from "../../config/values/text.js";
import { ERRORS, FleetError, quote, type Suggestion } from "../../errors.js";
import type { GcResult } from "../../sessions/gc/collect.js";
import { type Column, renderAge, renderBytes, renderTable, SESSION } from "./table.js";

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
