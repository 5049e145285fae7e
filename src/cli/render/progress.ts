import { quote } from "../../base/errors.js";
import type { AwaitedTurns, Progress } from "../../base/progress.js";
import type { LeaseWait } from "../../sessions/leases.js";

export const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/** Something that an operation reports while it runs. A string names its present step. */
export type Report = Progress | LeaseWait | string;

/** How long ago the operation began, and how long ago the report came, in milliseconds. */
export interface Times {
  begunMs: number;
  reportedMs: number;
}

/** Renders the line that shows that `what` is still going on. */
export function renderProgress(what: string, report: Report | null, { begunMs, reportedMs }: Times): string {
  const elapsed = `(${seconds(begunMs, Math.floor)})`;
  if (report === null) return `${what} ${elapsed}`;
  if (typeof report === "string") return `${what}: ${report} ${elapsed}`;
  if ("ahead" in report) return renderWait(report, reportedMs);
  const { done, total, turns } = report;
  const count = total === 1 ? what : `${what}: ${done} of ${total}`;
  return turns.length === 0 ? `${count} ${elapsed}` : `${count}. ${renderTurns(turns, reportedMs)}`;
}

function renderTurns(turns: readonly AwaitedTurns[], sinceMs: number): string {
  const [first] = turns.flatMap(({ serverId, sessionIds }) => sessionIds.map((id) => `${quote(id)} (${serverId})`));
  const others = turns.reduce((sum, { sessionIds }) => sum + sessionIds.length, -1);
  const more = others === 0 ? "" : ` and ${others} more`;
  const longest = turns.reduce((most, { remainingMs }) => Math.max(most, remainingMs), 0);
  return `Waiting up to ${seconds(longest - sinceMs)} for a turn in ${first}${more}`;
}

function renderWait({ sessionId, lease, ahead }: LeaseWait, sinceMs: number): string {
  const wait = (reason: string) => `Waiting for ${quote(sessionId)}: ${reason}. Ctrl-C stops waiting.`;
  const others = `${ahead} ${ahead === 1 ? "other waits" : "others wait"}`;
  if (lease === null) return wait(ahead === 0 ? "another turn runs in it" : `${others}, too`);
  const left = seconds(lease.remainingMs - sinceMs);
  if (lease.detached) return wait(`${lease.holder} locked it for ${left} more`);
  return wait(`${lease.holder} holds it for ${left} more${ahead === 0 ? "" : `, and ${others}`}`);
}

function seconds(ms: number, round = Math.ceil): string {
  return `${Math.max(0, round(ms / 1_000))} s`;
}
