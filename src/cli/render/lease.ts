import { printable } from "../../config/values/text.js";
import { quote } from "../../errors.js";
import type { Lease } from "../../model/lease.js";
import type { LeaseWait } from "../../sessions/leases/leases.js";
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

/** Makes a command print what it waits for, but only if standard error is a terminal. */
export function waitNotice(json: boolean): { onWait?: (wait: LeaseWait) => void } {
  if (json || process.stderr.isTTY !== true) return {};
  return {
    onWait: (wait) => {
      process.stderr.write(`Waiting for session ${quote(wait.sessionId)}: ${reason(wait)} Ctrl-C stops waiting.\n`);
    },
  };
}

function reason({ sessionId, lease, ahead }: LeaseWait): string {
  if (lease === null) return "others asked for it before.";
  const seconds = Math.ceil(lease.remainingMs / 1_000);
  const holder = `${quote(lease.holder)} holds its lease for another ${seconds} s`;
  if (lease.detached) return `${holder}, or until: copilotfleet unlock ${sessionId} --token TOKEN.`;
  const queue = ahead === 0 ? "" : `, and ${ahead} ${ahead === 1 ? "waits" : "wait"} for it`;
  return `${holder}, unless it is renewed${queue}.`;
}
