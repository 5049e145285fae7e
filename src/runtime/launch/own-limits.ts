import { systemCode } from "../../errors.js";

const CODES = new Set("EMFILE ENFILE EAGAIN ENOBUFS ENOMEM EADDRNOTAVAIL ENOSPC EDQUOT EROFS".split(" "));

/**
 * Searches an error and its causes for a system error that shows a limit of this process, its user or its machine.
 * Returns the code of that system error, or undefined if there is none.
 */
export function ownLimit(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const code = systemCode(cause);
    if (code !== undefined && CODES.has(code)) return code;
  }
  return undefined;
}
