/** The time axis of a chart. All times are in seconds. */
export interface TimeAxis {
  /** The text after the title of a chart, such as `in the last hour`. */
  span: string;
  /** The label of the newest values; null if their time is the label. */
  newest: string | null;
  /** The time that one bar covers, in a chart with bars. */
  unitS: number;
  /** The axis is at least this long, so that a few values are not stretched over its width. */
  shortestS: number;
  /** The distances between labels from which the chart may choose, in seconds. */
  steps: number[];
  /** Whether labels are at full minutes and hours of the user's time zone, and not at those of UTC. */
  isLocal: boolean;
  /** The width of the widest bar, in pixels. */
  widestBar: number;
  label(seconds: number): string;
  /** The text for a time in a table. */
  full(seconds: number): string;
}

const MINUTE_S = 60;
const DAY_S = 86_400;

export const LAST_HOUR: TimeAxis = {
  span: "in the last hour",
  newest: "Now",
  unitS: MINUTE_S,
  shortestS: 10 * MINUTE_S,
  steps: [1, 2, 5, 10, 15, 20, 30, 60].map((minutes) => minutes * MINUTE_S),
  isLocal: true,
  widestBar: 14,
  label: (seconds) => clock(seconds, {}),
  full: (seconds) => clock(seconds, { second: "2-digit" }),
};

/** Days of UTC, as the ledger counts them. */
export const LAST_DAYS: TimeAxis = {
  span: "of UTC",
  newest: null,
  unitS: DAY_S,
  shortestS: 6 * DAY_S,
  steps: [1, 2, 5, 10].map((days) => days * DAY_S),
  isLocal: false,
  widestBar: 40,
  label: (seconds) => day(seconds, {}),
  full: (seconds) => day(seconds, { weekday: "short" }),
};

function clock(seconds: number, more: Intl.DateTimeFormatOptions): string {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false, ...more } as const;
  return new Date(seconds * 1_000).toLocaleTimeString("en", options);
}

function day(seconds: number, more: Intl.DateTimeFormatOptions): string {
  const options = { day: "numeric", month: "short", timeZone: "UTC", ...more } as const;
  return new Date(seconds * 1_000).toLocaleDateString("en", options);
}
