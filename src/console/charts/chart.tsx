import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import type { HostSamples, Sample } from "../api/types.js";
import { type Column, Table } from "../parts/table.js";

export interface ChartLine {
  title: string;
  /** The name of a colour in the style sheet. */
  colour: "accent" | "good" | "warn" | "bad";
  isFilled?: boolean;
}

interface ChartProps {
  title: string;
  lines: readonly ChartLine[];
  data: Data;
  show: (value: number) => string;
  /** The label of a value on the vertical axis. Default: `show`. */
  tick?: (value: number) => string;
  /** Default: the last hour. */
  axis?: TimeAxis;
  /** The text for a value that is null. */
  missing?: string;
  isBars?: boolean;
  /** Whether the values are whole numbers. */
  isCount?: boolean;
}

const HEIGHT = 180;
/** The axis of time has room for at least this many bars, so that a few values are not stretched over its width. */
const SHORTEST = 8;
/** In pixels. */
const WIDEST_BAR = 30;
/** The distances between labels from which a chart of counts may choose. */
const COUNT_STEPS = Array.from({ length: 13 }, (_, power) => 10 ** power).flatMap((one) => [one, 2 * one, 5 * one]);
/** The most rows in the table of a chart. */
const MOST_ROWS = 60;

/** A chart with a table of its values. Text above it shows the newest values, or the values under the pointer. */
export function Chart(props: ChartProps) {
  const { title, lines, data, show, axis = LAST_HOUR, missing = "–" } = props;
  const [at, setAt] = useState<number | null>(null);
  const index = at ?? data.times.length - 1;
  const shown = (line: number, of = index) => {
    const value = data.lines[line]?.[of];
    return value === null || value === undefined ? missing : show(value);
  };
  const timeOf = (of: number) => axis.full(data.times[of] ?? 0);
  const newest = axis.newest ?? timeOf(data.times.length - 1);
  const columns: Column<number>[] = [
    { title: "Time", cell: timeOf },
    ...lines.map(({ title: name }, line) => ({ title: name, isNumber: true, cell: (row: number) => shown(line, row) })),
  ];
  const summary = lines.map(({ title: name }, line) => `${name} ${shown(line, data.times.length - 1)}`).join(", ");
  return (
    <section class="chart" aria-label={title}>
      <h2>{title}</h2>
      <p class="chart-values">
        {lines.map(({ title: name, colour }, line) => (
          <span key={name} class={`chart-value ${colour}`}>
            {name} <b>{shown(line)}</b>
          </span>
        ))}
        <span class="quiet chart-time">{at === null ? newest : timeOf(at)}</span>
      </p>
      <Plot {...props} axis={axis} label={`${title} ${axis.span}. ${newest}: ${summary}.`} setAt={setAt} />
      <details class="chart-table">
        <summary>Values as a table</summary>
        <div class="chart-rows">
          <Table label={title} columns={columns} rows={rowsOf(data)} idOf={String} />
        </div>
      </details>
    </section>
  );
}

interface PlotProps extends ChartProps {
  axis: TimeAxis;
  label: string;
  setAt(index: number | null): void;
}

function Plot(props: PlotProps) {
  const { data, label } = props;
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>();
  const latest = useRef(data);
  latest.current = data;
  const theme = useTheme();
  useEffect(() => {
    const { current } = place;
    if (current === null) return;
    const made = new uPlot(optionsOf(props, current.clientWidth), aligned(latest.current), current);
    plot.current = made;
    const resized = new ResizeObserver(() => made.setSize({ width: current.clientWidth, height: HEIGHT }));
    resized.observe(current);
    return () => {
      resized.disconnect();
      made.destroy();
    };
  }, [theme]);
  useEffect(() => plot.current?.setData(aligned(data)), [data]);
  return <div ref={place} class="plot" role="img" aria-label={label} />;
}

function aligned({ times, lines }: Data): uPlot.AlignedData {
  return [times, ...lines] as unknown as uPlot.AlignedData;
}

function optionsOf(props: PlotProps, width: number): uPlot.Options {
  const { lines, show, tick = show, axis: time, isBars = false, isCount = false, setAt } = props;
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const margin = isBars ? time.unitS / 2 : 0;
  const axis = {
    stroke: colour("quiet"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
    font: `11px ${style.fontFamily || "system-ui, sans-serif"}`,
  };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    padding: [8, 8, 0, 0],
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: {
      // The bounds that uPlot passes span a whole day if there is only one time.
      x: { time: time.isLocal, range: ({ data: [times] }) => boundsOf(times, time.unitS, margin) },
      y: { range: (_, __, max) => [0, max > 0 ? max * 1.12 : 1] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 28,
        space: 70,
        incrs: time.steps,
        values: (_, times) => times.map(time.label),
      },
      { ...axis, size: 62, ...(isCount ? { incrs: COUNT_STEPS } : {}), values: (_, values) => values.map(tick) },
    ],
    series: [
      {},
      ...lines.map(({ title, colour: name, isFilled }) => ({
        label: title,
        stroke: colour(name),
        width: isBars ? 0 : 2,
        spanGaps: true,
        points: { show: false },
        ...(isBars
          ? {
              fill: colour(name),
              paths: uPlot.paths.bars?.({ size: [0.7, WIDEST_BAR] }) as uPlot.Series.PathBuilder,
            }
          : {}),
        ...(isFilled === true ? { fill: `color-mix(in srgb, ${colour(name)} 14%, transparent)` } : {}),
      })),
    ],
    hooks: { setCursor: [({ cursor: { idx, left = -1 } }) => setAt(left < 0 ? null : (idx ?? null))] },
  };
}

function boundsOf(times: ArrayLike<number>, unitS: number, margin: number): [number, number] {
  const to = times[times.length - 1] ?? 0;
  return [Math.min(times[0] ?? to, to - SHORTEST * unitS) - margin, to + margin];
}

/** Returns a text that changes with the colours, so that `Plot` knows when to draw again in new colours. */
function useTheme(): string {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const read = () => `${document.documentElement.dataset.theme} ${dark.matches}`;
  const [theme, setTheme] = useState(read());
  useEffect(() => {
    const look = () => setTheme(read());
    const watcher = new MutationObserver(look);
    watcher.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    dark.addEventListener("change", look);
    return () => {
      watcher.disconnect();
      dark.removeEventListener("change", look);
    };
  }, []);
  return theme;
}

/** The indexes of the times that the table lists: the newest and every n-th before it, at most `MOST_ROWS`. */
function rowsOf({ times }: Data): number[] {
  const step = Math.max(1, Math.ceil(times.length / MOST_ROWS));
  const rows: number[] = [];
  for (let row = times.length - 1; row >= 0; row -= step) rows.push(row);
  return rows;
}

/** The time axis of a chart. All times are in seconds. */
interface TimeAxis {
  /** The text after the title of a chart, such as `in the last hour`. */
  span: string;
  /** The label of the newest values; null if their time is the label. */
  newest: string | null;
  /** The time that one bar covers. */
  unitS: number;
  /** The distances between labels from which the chart may choose, in seconds. */
  steps: number[];
  /** Whether labels are at full minutes and hours of the user's time zone, and not at those of UTC. */
  isLocal: boolean;
  label: (seconds: number) => string;
  /** The text for a time in a table. */
  full(seconds: number): string;
}

const MINUTE_S = 60;
const DAY_S = 86_400;

const LAST_HOUR: TimeAxis = {
  span: "in the last hour",
  newest: "Now",
  unitS: MINUTE_S,
  steps: [1, 2, 5, 10, 15, 20, 30, 60].map((minutes) => minutes * MINUTE_S),
  isLocal: true,
  label: (seconds) => clock(seconds, {}),
  full: (seconds) => clock(seconds, { second: "2-digit" }),
};

/** Days of UTC, as the ledger counts them. */
export const LAST_DAYS: TimeAxis = {
  span: "of UTC",
  newest: null,
  unitS: DAY_S,
  steps: [1, 2, 5, 10].map((days) => days * DAY_S),
  isLocal: false,
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

const HOUR_MS = 3_600_000;

/** Adds new samples to those that the page has, and drops those that are more than an hour older than the newest. */
export function merge(known: readonly HostSamples[], added: readonly HostSamples[]): HostSamples[] {
  const names = [...new Set([...known, ...added].map(({ host }) => host))].sort();
  const of = (list: readonly HostSamples[], name: string) => list.find(({ host }) => host === name)?.samples ?? [];
  return names.map((host) => {
    const before = of(known, host);
    const last = before.at(-1)?.at ?? "";
    const samples = [...before, ...of(added, host).filter(({ at }) => at > last)];
    const newest = Date.parse(samples.at(-1)?.at ?? "");
    return { host, samples: samples.filter(({ at }) => newest - Date.parse(at) < HOUR_MS) };
  });
}

/**
 * The time after which to ask for new samples, because the page has the samples of every host up to this time.
 * Undefined if the page has to ask for all samples.
 */
export function newestOfAll(hosts: readonly HostSamples[]): string | undefined {
  const ends = hosts.map(({ samples }) => samples.at(-1)?.at ?? "").sort();
  return ends[0] === "" ? undefined : ends[0];
}

/** The content of a chart: times in seconds, and a value of each line for each time. */
export interface Data {
  times: number[];
  lines: (number | null)[][];
}

type ValueOf = (sample: Sample) => number | null;

export function linesOf(samples: readonly Sample[], values: readonly ValueOf[]): Data {
  return {
    times: samples.map(({ at }) => Date.parse(at) / 1_000),
    lines: values.map((value) => samples.map(value)),
  };
}

/** The sums of counts for each minute, including the last one, which may be incomplete. */
export function perMinute(samples: readonly Sample[], values: readonly ValueOf[]): Data {
  const minuteOf = ({ at }: Sample) => Math.floor(Date.parse(at) / 1_000 / MINUTE_S);
  const [first, last] = [samples[0], samples.at(-1)];
  if (first === undefined || last === undefined) return { times: [], lines: values.map(() => []) };
  const from = minuteOf(first);
  const minutes = Array.from({ length: minuteOf(last) - from + 1 }, (_, index) => from + index);
  const sums = minutes.map(() => values.map(() => 0));
  for (const sample of samples) {
    const at = minuteOf(sample) - from;
    sums[at] = values.map((value, line) => (sums[at]?.[line] ?? 0) + (value(sample) ?? 0));
  }
  return {
    times: minutes.map((minute) => minute * MINUTE_S),
    lines: values.map((_, line) => sums.map((each) => each[line] ?? 0)),
  };
}
