/** A sample of one host, as `/v1/samples` returns it. */
export interface Sample {
  at: string;
  turns: { completed: number; failed: number; aborted: number; cut: number };
  turnMs: { p50: number | null; p95: number | null };
  turnsInFlight: number;
  servers: number;
  activeSessions: number;
  evictions: number;
  memoryBytes: number;
}

export interface HostSamples {
  host: string;
  samples: readonly Sample[];
}

const HOUR_MS = 3_600_000;
const MINUTE_S = 60;

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

export type Line = (number | null)[];

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
