import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Answer, HostSamples, Sample } from "../api/types.js";
import { bytes, usePolled } from "../parts/hooks.js";
import { Choice, Empty, Loaded, PageFrame } from "../parts/notice.js";
import { Chart, type ChartLine, linesOf, merge, newestOfAll, perMinute } from "./chart.js";

const EVERY_MS = 5_000;

/** How a host was used in the last hour. */
export function Charts() {
  const [chosen, setChosen] = useState<string>();
  const known = useRef<HostSamples[]>([]);
  const load = useCallback(async (signal: AbortSignal) => {
    const after = newestOfAll(known.current);
    const query = after === undefined ? "" : `?after=${encodeURIComponent(after)}`;
    const { hosts } = await ask<Answer<"listSamples">>("GET", `/v1/samples${query}`, { signal });
    known.current = merge(known.current, hosts);
    return known.current;
  }, []);
  const { value, problem } = usePolled(load, EVERY_MS);
  const host = value?.find(({ host }) => host === chosen) ?? value?.find(({ samples }) => samples.length > 0);
  const head = (
    <>
      <span class="quiet">The last hour{value?.length === 1 && host !== undefined && <> of {host.host}</>}</span>
      {value !== undefined && value.length > 1 && (
        <Choice label="Host" value={host?.host ?? ""} values={value.map(({ host }) => host)} choose={setChosen} />
      )}
    </>
  );
  return (
    <PageFrame title="Charts" head={head}>
      <Loaded of={{ value, problem }}>
        {() =>
          host === undefined || host.samples.length === 0 ? (
            <Empty title="There are no samples yet.">
              serve takes one at each health.interval, and keeps those of the last hour in its memory.
            </Empty>
          ) : (
            <div class="charts" key={host.host}>
              {CHARTS.map((chart) => (
                <ChartOf key={chart.title} samples={host.samples} chart={chart} />
              ))}
            </div>
          )
        }
      </Loaded>
    </PageFrame>
  );
}

interface HostChart {
  title: string;
  lines: readonly (ChartLine & { of(sample: Sample): number | null })[];
  /** Default: whole numbers. */
  show?: (value: number) => string;
  /** Whether each bar shows the sum of a minute. */
  isPerMinute?: boolean;
}

const CHARTS: readonly HostChart[] = [
  {
    title: "Turns per minute",
    isPerMinute: true,
    lines: [
      {
        title: "ended",
        colour: "accent",
        of: ({ turns: { completed, failed, aborted, cut } }) => completed + failed + aborted + cut,
      },
      { title: "failed or cut", colour: "bad", of: ({ turns: { failed, cut } }) => failed + cut },
    ],
  },
  {
    title: "Time of a turn, with waits for people",
    show: time,
    lines: [
      { title: "95 %", colour: "warn", of: ({ turnMs }) => turnMs.p95 },
      { title: "median", colour: "accent", of: ({ turnMs }) => turnMs.p50 },
    ],
  },
  {
    title: "Memory",
    show: bytes,
    lines: [{ title: "servers", colour: "accent", isFilled: true, of: ({ memoryBytes }) => memoryBytes }],
  },
  {
    title: "Sessions",
    lines: [
      { title: "in memory", colour: "accent", isFilled: true, of: ({ activeSessions }) => activeSessions },
      { title: "in a turn", colour: "good", of: ({ turnsInFlight }) => turnsInFlight },
    ],
  },
  {
    title: "Evictions per minute",
    isPerMinute: true,
    lines: [{ title: "evicted", colour: "warn", of: ({ evictions }) => evictions }],
  },
  {
    title: "Servers",
    lines: [{ title: "running", colour: "accent", isFilled: true, of: ({ servers }) => servers }],
  },
];

function ChartOf({ samples, chart }: { samples: readonly Sample[]; chart: HostChart }) {
  const { title, lines, show = whole, isPerMinute = false } = chart;
  const data = useMemo(
    () =>
      (isPerMinute ? perMinute : linesOf)(
        samples,
        lines.map(({ of }) => of),
      ),
    [samples, lines, isPerMinute],
  );
  return <Chart {...{ title, lines, data, show }} isBars={isPerMinute} isCount={show === whole} />;
}

/**
 * Shows a whole number. Returns an empty text for any other number, so that ticks between whole numbers have no label.
 */
function whole(value: number): string {
  return Number.isInteger(value) ? value.toLocaleString("en") : "";
}

function time(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  return ms < 60_000 ? `${(ms / 1_000).toFixed(1)} s` : `${(ms / 60_000).toFixed(1)} min`;
}
