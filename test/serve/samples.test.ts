import { describe, expect, it } from "vitest";
import { type Gauges, SampleRing } from "../../src/serve/report/measurements.js";

const GAUGES: Gauges = { turnsInFlight: 1, servers: 2, activeSessions: 3, memoryBytes: 4 };
const NONE = { completed: 0, failed: 0, aborted: 0, cut: 0 };

function started(): SampleRing {
  const ring = new SampleRing();
  ring.start();
  return ring;
}

describe("the samples of a host", () => {
  it("a sample counts what happened since the previous one, and has the gauges' values of its moment", () => {
    const ring = started();
    ring.turnEnded("completed", 100, 1_000);
    ring.turnEnded("cut", 300, 1_000);
    ring.evicted(5);
    ring.take(GAUGES, 2_000);
    ring.take({ ...GAUGES, servers: 0 }, 3_000);
    expect(ring.after()).toEqual([
      {
        at: "1970-01-01T00:00:02.000Z",
        turns: { ...NONE, completed: 1, cut: 1 },
        turnMs: { p50: 100, p95: 300 },
        evictions: 5,
        ...GAUGES,
      },
      {
        at: "1970-01-01T00:00:03.000Z",
        turns: NONE,
        turnMs: { p50: 100, p95: 300 },
        evictions: 0,
        ...GAUGES,
        servers: 0,
      },
    ]);
  });

  it("the percentiles of a sample cover only the turns of the last minute", () => {
    const ring = started();
    for (let ms = 1; ms <= 100; ms += 1) ring.turnEnded("completed", ms, 0);
    ring.turnEnded("completed", 7, 30_000);
    ring.take(GAUGES, 59_999);
    ring.take(GAUGES, 60_000);
    ring.take(GAUGES, 90_000);
    expect(ring.after().map(({ turnMs }) => turnMs)).toEqual([
      { p50: 50, p95: 95 },
      { p50: 7, p95: 7 },
      { p50: null, p95: null },
    ]);
  });
});
