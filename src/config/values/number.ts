import { FleetError, quote } from "../../errors.js";

export const LARGEST_PORT = 65_535;

// `Number(text)` would also accept "1e4", "0x10", " 4321" and "".
const DECIMAL = /^-?(?:0|[1-9]\d{0,15})(?:\.\d{1,15})?$/;

/**
 * Returns the number that `text` contains in plain decimal digits: no exponent, no blanks, no leading zeros. Otherwise
 * null.
 */
export function readNumber(text: string): number | null {
  return DECIMAL.test(text) ? Number(text) : null;
}

/**
 * Reads a TCP port from a flag. `checkPrivilege` in checks.ts refuses ports below 1024 later, if they are not allowed.
 *
 * @param options.name the flag, for the message
 * @throws FleetError `FLEET_PORT_INVALID` when the text is not a port.
 */
export function parsePort(text: string, options: { name: string }): number {
  const port = readNumber(text);
  if (port !== null && Number.isInteger(port) && port >= 1 && port <= LARGEST_PORT) return port;
  throw new FleetError(
    "FLEET_PORT_INVALID",
    `${options.name} is ${quote(text)}. Allowed: a whole number from 1 to ${LARGEST_PORT}`,
  );
}

/**
 * Reads a count from a flag.
 *
 * @param options.name the flag, for the message
 * @throws FleetError `FLEET_USAGE_INVALID` when the text is not a whole number within the bounds.
 */
export function parseCount(text: string, options: { name: string; min: number; max: number }): number {
  const count = readNumber(text);
  if (count !== null && Number.isInteger(count) && count >= options.min && count <= options.max) return count;
  throw new FleetError(
    "FLEET_USAGE_INVALID",
    `${options.name} is ${quote(text)}. Allowed: a whole number from ${options.min} to ${options.max}`,
  );
}
