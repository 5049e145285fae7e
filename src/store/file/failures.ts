import { getSystemErrorMap } from "node:util";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import { filesExhausted, lacksFiles } from "../../base/system/own-limits.js";
import { shellQuote } from "../../base/values/text.js";

/**
 * Converts a system error of a read or a write into `FLEET_STATE_UNWRITABLE`, or into `FLEET_FILES_EXHAUSTED` if this
 * process cannot open any more files. Returns any other error unchanged.
 */
export function mediumError(action: "read" | "write", path: string, error: unknown): unknown {
  const code = systemCode(error);
  if (error instanceof FleetError || code === undefined) return error;
  if (lacksFiles(error)) return filesExhausted(error);
  const verb = action === "read" ? "read" : "written";
  return new FleetError("FLEET_STATE_UNWRITABLE", `The state in ${quote(path)} cannot be ${verb}: ${reason(error)}.`, {
    suggestions: [isFull(error) ? `df -h ${shellQuote(path)}` : `ls -ld ${shellQuote(path)}`],
    cause: error,
  });
}

/** Whether a write failed because the disk, or the user's share of it, is full. */
export function isFull(error: unknown): boolean {
  return ["ENOSPC", "EDQUOT"].includes(systemCode(error) ?? "");
}

/** The system's description of the error, such as `no space left on device (ENOSPC)`. */
export function reason(error: unknown): string {
  const code = systemCode(error);
  if (code === undefined) return error instanceof Error ? error.message : String(error);
  const errno = error instanceof Error && "errno" in error && typeof error.errno === "number" ? error.errno : 0;
  const words = getSystemErrorMap().get(errno)?.[1];
  return words === undefined ? code : `${words} (${code})`;
}

/** Reads a file or folder. @returns undefined when it does not exist */
export function readIfThere<T>(path: string, read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw mediumError("read", path, error);
  }
}

/** Makes a system call. @returns whether it failed with one of these error codes. @throws any other error. */
export async function failsWith(codes: readonly string[], call: () => unknown): Promise<boolean> {
  try {
    await call();
    return false;
  } catch (error) {
    if (codes.includes(systemCode(error) ?? "")) return true;
    throw error;
  }
}

export async function writing<T>(path: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (error) {
    throw mediumError("write", path, error);
  }
}
