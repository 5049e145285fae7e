import type { PoolState } from "../pool/admission.js";

/** Explains a closed pool to a person; null while the pool is open. */
export function describeClosedPool({ state, reason, drainedAt }: PoolState): string | null {
  if (state === "open") return null;
  const wayOut = drainedAt === null ? "" : " Open it again: copilotfleet drain --undo";
  return `The pool is ${reason}. It takes no new servers or turns.${wayOut}`;
}

/** On standard error, so that scripts that read the table go on reading it. */
export function warnOfClosedPool(pool: PoolState): void {
  const closed = describeClosedPool(pool);
  if (closed !== null) process.stderr.write(`${closed}\n`);
}
