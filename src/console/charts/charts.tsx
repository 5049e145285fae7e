import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Answer, HostSamples, Sample } from "../api/types.js";
import { bytes, usePolled, useTitle } from "../parts/hooks.js";
import { Choice, Empty, Loaded } from "../parts/notice.js";
import { Chart, type ChartLine, linesOf, merge, newestOfAll, perMinute } from "./chart.js";

const EVERY_MS = 5_000;

/** How a host was used in the last hour. */
export function Charts() {
  const [chosen, setChosen] = useState<string>();
  const known = useRef<HostSamples[]>([]);
  useTitle("Charts");
  const load = useCallback(async (signal: AbortSignal) => {
    const after = newestOfAll(known.current);
    const query = after === undefined ? "" : `?after=${encodeURIComponent(after)}`;
    const { hosts } = await ask<Answer<"listSamples">>("GET", `/v1/samples${query}`, { signal });
    known.current = merge(known.current, hosts);
    return known.current;
  }, []);
  const { value, problem } = usePolled(load, EVERY_MS);
  const host = value?.find(({ host }) => host === chosen) ?? value?.find(({ samples }) => samples.length > 0);
  return (
    <div class="page">
      <div class="page-head">
        <h1>Charts</h1>
        <span class="quiet">The last hour{value?.length === 1 && host !== undefined && <> of {host.host}</>}</span>
        {value !== undefined && value.length > 1 && (
          <Choice label="Host" value={host?.host ?? ""} values={value.map(({ host }) => host)} choose={setChosen} />
        )}
      </div>
      <Loaded of={{ value, problem }}>
        {() =>
          host === undefined || host.samples.length === 0 ? (
            <Empty title="There are no samples yet.">
              serve takes one at each health.interval, and keeps those of the last hour in its memory.
            </Empty>
          ) : (
            <ChartsOf key={host.host} samples={host.samples} />
          )
        }
      </Loaded>
    </div>
  );
}

const TURNS: readonly ChartLine[] = [
  { title: "ended", colour: "accent" },
  { title: "failed or cut", colour: "bad" },
];
const TIMES: readonly ChartLine[] = [
  { title: "95 %", colour: "warn" },
  { title: "median", colour: "accent" },
];
const MEMORY: readonly ChartLine[] = [{ title: "servers", colour: "accent", isFilled: true }];
const SESSIONS: readonly ChartLine[] = [
  { title: "in memory", colour: "accent", isFilled: true },
  { title: "in a turn", colour: "good" },
];
const EVICTIONS: readonly ChartLine[] = [{ title: "evicted", colour: "warn" }];
const SERVERS: readonly ChartLine[] = [{ title: "running", colour: "accent", isFilled: true }];

function ChartsOf({ samples }: { samples: readonly Sample[] }) {
  const data = useMemo(
    () => ({
      turns: perMinute(
        samples,
        ({ turns: { completed, failed, aborted, cut } }) => completed + failed + aborted + cut,
        ({ turns: { failed, cut } }) => failed + cut,
      ),
      times: linesOf(
        samples,
        ({ turnMs }) => turnMs.p95,
        ({ turnMs }) => turnMs.p50,
      ),
      memory: linesOf(samples, ({ memoryBytes }) => memoryBytes),
      sessions: linesOf(
        samples,
        ({ activeSessions }) => activeSessions,
        ({ turnsInFlight }) => turnsInFlight,
      ),
      evictions: perMinute(samples, ({ evictions }) => evictions),
      servers: linesOf(samples, ({ servers }) => servers),
    }),
    [samples],
  );
  return (
    <div class="charts">
      <Chart title="Turns per minute" lines={TURNS} data={data.turns} show={whole} isCount isBars />
      <Chart title="Time of a turn, with waits for people" lines={TIMES} data={data.times} show={time} />
      <Chart title="Memory" lines={MEMORY} data={data.memory} show={bytes} />
      <Chart title="Sessions" lines={SESSIONS} data={data.sessions} show={whole} isCount />
      <Chart title="Evictions per minute" lines={EVICTIONS} data={data.evictions} show={whole} isCount isBars />
      <Chart title="Servers" lines={SERVERS} data={data.servers} show={whole} isCount />
    </div>
  );
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
