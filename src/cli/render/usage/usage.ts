import { countOf } from "../../../config/values/text.js";
import type { UsageRow, UsageTotal } from "../../../usage/ledger/report.js";
import type { List, ListColumn } from "../lists/list.js";

const COUNTS: readonly ListColumn<UsageRow>[] = [
  { heading: "TURNS", field: "turns" },
  { heading: "REQUESTS", field: "requests", yields: 3 },
  { heading: "INPUT", field: "inputTokens", cell: ({ inputTokens }) => renderCount(inputTokens) },
  {
    heading: "CACHED",
    field: "cacheReadTokens",
    yields: 4,
    cell: ({ cacheReadTokens }) => renderCount(cacheReadTokens),
  },
  { heading: "OUTPUT", field: "outputTokens", cell: ({ outputTokens }) => renderCount(outputTokens) },
  { heading: "CREDITS", field: "credits", yields: 2, cell: ({ credits }) => renderCount(credits) },
  { heading: "COST", field: "cost", yields: 1, cell: ({ cost }) => renderCount(cost) },
];

/** The list of `usage`. Its first column contains the user, day, model or other key of each group. */
export const USAGE: List<UsageRow> = {
  kind: "usage",
  idOf: ({ key }) => key ?? "",
  columns: [{ heading: "KEY", field: "key", cut: "middle", cell: ({ key }) => key ?? "-" }, ...COUNTS],
};

/** A number that was neither reported nor estimated is shown as a dash. */
function renderCount(count: number | null): string {
  return count === null ? "-" : String(count);
}

/** The lines below the table: an empty line and the totals. */
export function renderTotal({ turns, requests, inputTokens, outputTokens }: UsageTotal): string[] {
  const tokens = `${renderCount(inputTokens)} input and ${renderCount(outputTokens)} output tokens`;
  return ["", `${countOf(turns, "turn")}, ${countOf(requests, "model request")}, ${tokens}`];
}
