import { systemCode } from "../../errors.js";

/** Codes of system errors that are due to this process, its user or its machine, and not to the other side. */
const CODES = new Set([
  "EMFILE",
  "ENFILE",
  "EAGAIN",
  "ENOBUFS",
  "ENOMEM",
  "EADDRNOTAVAIL",
  "ENOSPC",
  "EDQUOT",
  "EROFS",
]);

/** The code of such a system error among the causes of an error, however deep. Undefined when there is none. */
export function ownLimit(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const code = systemCode(cause);
    if (code !== undefined && CODES.has(code)) return code;
  }
  return undefined;
}
