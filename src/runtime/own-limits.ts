import { systemCode } from "../errors.js";

/** What the system says when this process, its user or the machine has no more of something: of the other side it tells nothing. */
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

/** The system's code, if that was the reason for an error, however deep underneath. */
export function ownLimit(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const code = systemCode(cause);
    if (code !== undefined && CODES.has(code)) return code;
  }
  return undefined;
}
