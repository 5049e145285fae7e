import { printable } from "../../config/values/text.js";
import type { Lease } from "../../model/lease.js";
import { renderAge, renderTable, SESSION } from "./table.js";

export function renderLease(lease: Lease | null): string {
  if (lease === null) return "No lease.";
  return renderTable(
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
}
