import { measureFault } from "./measure.js";

const BYTES = { kb: 1024, mb: 1024 ** 2, gb: 1024 ** 3 };
const LARGEST_BYTES = 1024 * BYTES.gb;
const GRAMMAR = /^(\d{1,15}(?:\.\d{1,9})?)([kmgKMG][bB])$/;

/** A regular expression that all sizes match, for schemas/config.json. */
export const SIZE_PATTERN: string = GRAMMAR.source;

/** The text after "Allowed:" in a message about a size. */
export const ALLOWED_SIZE = 'a number with a unit (kb, mb, gb), such as "512mb", above 0 and at most 1024gb';

/** States why a text is not a size of at most `most`, such as "256mb". */
export function sizeFault(given: string, most = `${LARGEST_BYTES / BYTES.gb}gb`): string {
  const outOfRange = (text: string) => {
    const bytes = bytesOf(text);
    if (bytes === null) return "which is not a number with a unit";
    return bytes > (bytesOf(most) ?? 0) ? `which is more than ${most}` : "which is too small";
  };
  return measureFault(given, { units: ["kb", "mb", "gb", "KB", "MB", "GB"], example: most, outOfRange }).problem;
}

/** Returns whole bytes from 1 to 1024 gb, or null if `text` is anything else. Units are powers of 1024. */
export function readSize(text: string): number | null {
  const bytes = bytesOf(text);
  return bytes !== null && bytes >= 1 && bytes <= LARGEST_BYTES ? bytes : null;
}

/** A size in the largest unit of which it is a whole number, such as "512mb", or else in bytes. */
export function writeSize(bytes: number): string {
  const units = Object.entries(BYTES).reverse();
  const [unit, factor] = units.find(([, size]) => bytes % size === 0) ?? [" bytes", 1];
  return `${bytes / factor}${unit}`;
}

function bytesOf(text: string): number | null {
  const [, amount = "", unit = ""] = GRAMMAR.exec(text) ?? [];
  const factor = BYTES[unit.toLowerCase() as keyof typeof BYTES] as number | undefined;
  return factor === undefined ? null : Math.round(Number(amount) * factor);
}
