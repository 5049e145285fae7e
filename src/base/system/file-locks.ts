import { readFileSync, statSync } from "node:fs";
import { systemCode } from "../errors.js";

/**
 * The process that holds the lock for writing on one byte of a file (proc_locks(5)). Null if there is none, or if it
 * cannot be seen, for example from another PID namespace.
 */
export function lockHolder(path: string, byte: number): number | null {
  try {
    const { ino } = statSync(path);
    for (const line of readFileSync("/proc/locks", "utf8").split("\n")) {
      const [, , , mode, pid, place = "", from, to] = line.trim().split(/\s+/);
      const isHeld = mode === "WRITE" && Number(from) <= byte && (to === "EOF" || Number(to) >= byte);
      if (isHeld && place.split(":")[2] === String(ino) && Number(pid) > 0) return Number(pid);
    }
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  }
  return null;
}
