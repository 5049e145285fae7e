import { printable } from "../../config/values/text.js";
import type { Lease } from "../../model/lease.js";
import { renderAge, renderTable, SESSION } from "./table.js";

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
