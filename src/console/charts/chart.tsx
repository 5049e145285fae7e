import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import type { HostSamples, Sample } from "../api/types.js";

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
/** The distances between labels from which a chart of counts may choose. */
const COUNT_STEPS = Array.from({ length: 13 }, (_, power) => 10 ** power).flatMap((one) => [one, 2 * one, 5 * one]);
/** The most rows in the table of a chart. */
const MOST_ROWS = 60;

/** A chart with a table of its values. Text above it shows the newest values, or the values under the pointer. */
export function Chart({
  title,
  lines,
  data,
  show,
  tick = show,
  axis = LAST_HOUR,
  missing = "–",
  isBars = false,
  isCount = false,
}: ChartProps) {
  const [at, setAt] = useState<number | null>(null);
  const index = at ?? data.times.length - 1;
  const shown = (line: number, of = index) => {
    const value = data.lines[line]?.[of];
    return value === null || value === undefined ? missing : show(value);
  };
  const timeOf = (of: number) => axis.full(data.times[of] ?? 0);
  const newest = axis.newest ?? timeOf(data.times.length - 1);
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
      <Plot
        {...{ lines, data, tick, axis, isBars, isCount, setAt }}
        label={`${title} ${axis.span}. ${newest}: ${summary}.`}
      />
      <details class="chart-table">
        <summary>Values as a table</summary>
        <div class="chart-rows">
          <table>
            <caption class="sr-only">{title}</caption>
            <thead>
              <tr>
                <th scope="col">Time</th>
                {lines.map(({ title: name }) => (
                  <th key={name} scope="col" class="number">
                    {name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rowsOf(data).map((row) => (
                <tr key={data.times[row]}>
                  <th scope="row">{timeOf(row)}</th>
                  {lines.map(({ title: name }, line) => (
                    <td key={name} class="number">
                      {shown(line, row)}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </section>
  );
}

interface PlotProps extends Pick<ChartProps, "lines" | "data"> {
  tick: (value: number) => string;
  axis: TimeAxis;
  isBars: boolean;
  isCount: boolean;
  label: string;
  setAt(index: number | null): void;
}

function Plot({ lines, data, tick, axis, isBars, isCount, label, setAt }: PlotProps) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>();
  const latest = useRef(data);
  latest.current = data;
  const theme = useTheme();
  useEffect(() => {
    const { current } = place;
    if (current === null) return;
    const made = new uPlot(
      optionsOf({ lines, tick, axis, isBars, isCount, setAt }, current.clientWidth),
      aligned(latest.current),
      current,
    );
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

function optionsOf(
  {
    lines,
    tick,
    axis: { unitS, shortestS, steps, label, isLocal, widestBar },
    isBars,
    isCount,
    setAt,
  }: Omit<PlotProps, "data" | "label">,
  width: number,
): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const margin = isBars ? unitS / 2 : 0;
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
      x: { time: isLocal, range: (_, from, to) => [Math.min(from, to - shortestS) - margin, to + margin] },
      y: { range: (_, __, max) => [0, max > 0 ? max * 1.12 : 1] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 28,
        space: 70,
        incrs: steps,
        values: (_, times) => times.map(label),
      },
      {
        ...axis,
        size: 62,
        ...(isCount ? { incrs: COUNT_STEPS } : {}),
        values: (_, values) => values.map((value) => tick(value)),
      },
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
          ? { fill: colour(name), paths: uPlot.paths.bars?.({ size: [0.7, widestBar] }) as uPlot.Series.PathBuilder }
          : {}),
        ...(isFilled === true ? { fill: `color-mix(in srgb, ${colour(name)} 14%, transparent)` } : {}),
      })),
    ],
    hooks: { setCursor: [({ cursor: { idx, left = -1 } }) => setAt(left < 0 ? null : (idx ?? null))] },
  };
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

const LAST_HOUR: TimeAxis = {
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

type Line = (number | null)[];

/** The content of a chart: times in seconds, and a value of each line for each time. */
export interface Data {
  times: number[];
  lines: Line[];
}

export function linesOf(samples: readonly Sample[], ...values: ((sample: Sample) => number | null)[]): Data {
  return {
    times: samples.map(({ at }) => Date.parse(at) / 1_000),
    lines: values.map((value) => samples.map(value)),
  };
}

/** The sums of counts for each minute, including the last one, which may be incomplete. */
export function perMinute(samples: readonly Sample[], ...values: ((sample: Sample) => number)[]): Data {
  const minuteOf = ({ at }: Sample) => Math.floor(Date.parse(at) / 1_000 / MINUTE_S);
  const [first, last] = [samples[0], samples.at(-1)];
  if (first === undefined || last === undefined) return { times: [], lines: values.map(() => []) };
  const from = minuteOf(first);
  const minutes = Array.from({ length: minuteOf(last) - from + 1 }, (_, index) => from + index);
  const lines = values.map((value) => {
    const sums = minutes.map(() => 0);
    for (const sample of samples) {
      const index = minuteOf(sample) - from;
      sums[index] = (sums[index] ?? 0) + value(sample);
    }
    return sums;
  });
  return { times: minutes.map((minute) => minute * MINUTE_S), lines };
}
