import { FleetError, quote } from "../../errors.js";

const BYTES = { kb: 1024, mb: 1024 ** 2, gb: 1024 ** 3 };
const LARGEST_BYTES = 1024 * BYTES.gb;
const GRAMMAR = /^(\d{1,15}(?:\.\d{1,9})?)(kb|mb|gb)$/i;

/** The text after "Allowed:" in a message about a size. */
export const ALLOWED_SIZE = 'a number with a unit (kb, mb, gb), such as "512mb", above 0 and at most 1024gb';

/** Returns whole bytes from 1 to 1024 gb, or null if `text` is anything else. Units are powers of 1024. */
export function readSize(text: string): number | null {
  const [, amount = "", unit = ""] = GRAMMAR.exec(text) ?? [];
  const factor = BYTES[unit.toLowerCase() as keyof typeof BYTES] as number | undefined;
  if (factor === undefined) return null;
  const bytes = Math.round(Number(amount) * factor);
  return bytes >= 1 && bytes <= LARGEST_BYTES ? bytes : null;
}

/**
 * Returns the bytes of a size such as "1gb" or "1.5mb".
 *
 * @param options.name the flag or key that the value was given as, for the message
 * @throws FleetError `FLEET_SIZE_INVALID` when the text is not a size.
 */
export function parseSize(text: string, options: { name: string }): number {
  const bytes = readSize(text);
  if (bytes !== null) return bytes;
  throw new FleetError("FLEET_SIZE_INVALID", `${options.name} is ${quote(text)}. Allowed: ${ALLOWED_SIZE}`, {
    suggestions: [`Give ${options.name} a unit, for example "1gb"`],
  });
}
