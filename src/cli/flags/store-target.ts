import type { Origin } from "../../config/problem.js";
import { quote } from "../../errors.js";
import { usage } from "./flags.js";

/**
 * Reads which store `--to` or `--to-env` names. A URL with a password has to come from a variable, because other users
 * can read flags.
 *
 * @throws FleetError `FLEET_USAGE_INVALID` when not exactly one of the flags is given, or the variable is not usable.
 */
export function storeTarget(
  to: string | undefined,
  variable: string | undefined,
  env: NodeJS.ProcessEnv,
): { to: string; origin: Origin } {
  if (to !== undefined && variable === undefined) return { to, origin: { from: "flag", name: "--to" } };
  if (to !== undefined || variable === undefined) {
    throw usage("Give --to STORE or --to-env VAR.", ["copilotfleet store migrate --help"]);
  }
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(variable)) {
    throw usage("--to-env is not the name of a variable. Allowed: letters, digits and _, not starting with a digit");
  }
  const value = env[variable];
  if (value === undefined || value === "") throw usage(`--to-env ${quote(variable)} is not set, or empty.`);
  return { to: value, origin: { from: "variable", name: variable } };
}
