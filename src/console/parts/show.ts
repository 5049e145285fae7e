const UNITS: readonly (readonly [Intl.RelativeTimeFormatUnit, number])[] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];
const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const SIZES = ["B", "kB", "MB", "GB", "TB"];

/** How long ago a time (ISO 8601) was, such as "5 minutes ago". */
export function ago(time: string | null, now = Date.now()): string {
  if (time === null) return "never";
  const seconds = (Date.parse(time) - now) / 1_000;
  const [unit, size] = UNITS.find(([, each]) => Math.abs(seconds) >= each) ?? ["second", 1];
  return unit === "second" ? "just now" : RELATIVE.format(Math.round(seconds / size), unit);
}

/** The time in full, for tooltips. */
export function exact(time: string): string {
  return new Date(time).toLocaleString();
}

export function bytes(count: number | null): string {
  if (count === null) return "–";
  const power = count < 1 ? 0 : Math.min(SIZES.length - 1, Math.floor(Math.log10(count) / 3));
  const value = count / 1_000 ** power;
  return `${value.toFixed(power === 0 || value >= 10 ? 0 : 1)} ${SIZES[power]}`;
}

export function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

/** A number with separators. */
export function amount(count: number): string {
  return count.toLocaleString("en", { maximumFractionDigits: 2 });
}

const LONGEST_NAME = 36;

/** A name, with `…` in the middle if it is long. An id that the fleet chose is never cut. */
export function short(name: string): string {
  const letters = [...name];
  if (letters.length <= LONGEST_NAME) return name;
  const kept = (LONGEST_NAME - 1) / 2;
  return `${letters.slice(0, Math.ceil(kept)).join("")}…${letters.slice(-Math.floor(kept)).join("")}`;
}
