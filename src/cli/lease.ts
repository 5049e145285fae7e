import { printable } from "../config/text.js";
import type { Lease } from "../store/store.js";
import { renderAge, renderTable } from "./table.js";

/** What `lock --show` prints. */
export function renderLease(lease: Lease | null): string {
  if (lease === null) return "No lease.";
  return renderTable(
    ["SESSION", "HOLDER", "AGE", "ENDS IN", "FENCE", "TAKEN OVER SINCE"],
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
