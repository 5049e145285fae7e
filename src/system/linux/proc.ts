import { systemCode } from "../../errors.js";
import { isOwnLimit, unreadable } from "../unreadable.js";

/**
 * Returns the result of `look`, or null if its target does not exist or belongs to another user.
 *
 * @throws FleetError `FLEET_PROCESSES_UNREADABLE` when a limit of this process or machine prevents the look
 */
export function seen<T>(look: () => T): T | null {
  try {
    return look();
  } catch (error) {
    if (!isOwnLimit(error)) return null;
    throw unreadable("processes", `this process has reached a limit (${systemCode(error)})`, "ulimit -n", error);
  }
}
