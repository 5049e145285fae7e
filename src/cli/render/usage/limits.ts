import { USER_LIMITS, type UserLimit } from "../../../config/limits.js";
import { printable } from "../../../config/values/text.js";
import type { LimitView } from "../../../usage/limits/limits.js";
import { renderTable } from "../table.js";

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
