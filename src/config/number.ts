import { FleetError, quote } from "../errors.js";

export const LARGEST_PORT = 65_535;

// Not `Number(text)`, which also takes "1e4", "0x10", " 4321" and "".
const DECIMAL = /^-?(?:0|[1-9]\d{0,15})(?:\.\d{1,15})?$/;

/** The number that `text` spells in plain decimal digits, or null: no exponent, no blanks, no leading zeros. */
export function readNumber(text: string): number | null {
  return DECIMAL.test(text) ? Number(text) : null;
}

/**
 * A TCP port given as a flag. Ports below 1024 are for `checkPrivilege` in checks.ts to judge, when all is known.
 *
 * @param options.name The flag, for the message.
 * @throws FleetError `FLEET_PORT_INVALID`.
 */
export function parsePort(text: string, options: { name: string }): number {
  const port = readNumber(text);
  if (port !== null && Number.isInteger(port) && port >= 1 && port <= LARGEST_PORT) return port;
  throw new FleetError(
    "FLEET_PORT_INVALID",
    `${options.name} is ${quote(text)}: allowed is a whole number from 1 to ${LARGEST_PORT}`,
  );
}

/**
 * A count given as a flag.
 *
 * @param options.name The flag, for the message.
 * @throws FleetError `FLEET_USAGE_INVALID`.
 */
export function parseCount(text: string, options: { name: string; min: number; max: number }): number {
  const count = readNumber(text);
  if (count !== null && Number.isInteger(count) && count >= options.min && count <= options.max) return count;
  throw new FleetError(
    "FLEET_USAGE_INVALID",
    `${options.name} is ${quote(text)}: allowed is a whole number from ${options.min} to ${options.max}`,
  );
}
