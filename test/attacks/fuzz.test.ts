import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { knownMethods } from "../../src/door/policy/methods.js";
import { encodeBody } from "../../src/runtime/wire/frames.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

/** Bodies that are valid, broken, forged or nonsense. */
const text = fc.oneof(
  fc.json({ maxDepth: 4 }),
  fc.string({ unit: "binary" }),
  fc
    .record(
      {
        jsonrpc: fc.constantFrom("2.0", "1.0"),
        id: fc.oneof(fc.nat(), fc.string(), fc.constant(null)),
        method: fc.oneof(fc.constantFrom(...knownMethods(), "$/ack"), fc.string()),
        params: fc.oneof(
          fc.record({ sessionId: fc.constantFrom("nobodys", "", "../x", "a".repeat(500)) }),
          fc.jsonValue({ maxDepth: 3 }),
        ),
        result: fc.jsonValue({ maxDepth: 2 }),
      },
      { requiredKeys: [] },
    )
    .map((value) => JSON.stringify(value)),
);
const deep = fc
  .integer({ min: 1, max: 20_000 })
  .map((depth) => `{"jsonrpc":"2.0","id":1,"result":${"[".repeat(depth)}${"]".repeat(depth)}}`);
const body = fc.oneof(
  { weight: 20, arbitrary: text.map((value) => Buffer.from(value)) },
  { weight: 1, arbitrary: deep.map((value) => Buffer.from(value)) },
  {
    weight: 3,
    arbitrary: fc.uint8Array({ maxLength: 200 }).map((value) => Buffer.from(value)),
  },
);
const lying = fc
  .tuple(fc.constantFrom("-1", "0", "5", "99999999", "99999999999999999999", "x", "", "0x10"), body)
  .map(([length, bytes]) => Buffer.concat([Buffer.from(`Content-Length: ${length}\r\n\r\n`), bytes]));
const bytes = fc.oneof(
  { weight: 10, arbitrary: body.map(encodeBody) },
  { weight: 2, arbitrary: lying },
  { weight: 1, arbitrary: body },
);
const stream = fc.array(bytes, { minLength: 1, maxLength: rounds(20, 400), size: "max" });

/** How many frames to send in total. Between the streams, the test checks that a good client still gets answers. */
const FRAMES = rounds(3_000, 1_000_000);
const BATCH = 100;

describe("a front door that receives random frames", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open();
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it(
    "closes connections that send broken frames, keeps serving a good client, and keeps its memory bounded",
    async () => {
      const alices = unused("alices");
      const token = await at.token("mallory");
      const good = await RawClient.as(at.url, await at.token("alice"));
      await good.requestOk("session.create", { sessionId: alices });
      await good.turnOk(alices, "before");
      const seed = Number(process.env.SEED ?? Date.now() % 2 ** 31);
      let sent = 0;
      let ended = 0;
      let heapAtStart = 0;
      let samples: Buffer[][] = [];
      for (let round = 0; sent < FRAMES; round++) {
        if (round === BATCH) {
          samples = []; // free the frames, so that the first measurement does not count them
          heapAtStart = heap();
        }
        // Generate the frames in batches, because a million frames would fill the memory that this test measures.
        if (round % BATCH === 0) samples = fc.sample(stream, { seed: seed + round, numRuns: BATCH });
        const chunks = samples[round % BATCH] ?? [];
        const client = await RawClient.as(at.url, token);
        const whole = Buffer.concat(chunks);
        // Split and merge frames, as the network may do.
        const cut = round % 3 === 0 ? Math.floor(whole.length / 2) : whole.length;
        client.bytes(whole.subarray(0, cut));
        if (cut < whole.length) await new Promise((resolve) => setImmediate(resolve));
        client.bytes(whole.subarray(cut));
        sent += chunks.length;
        const answered = await Promise.race([
          client.request("ping", { message: "alive" }).then(
            () => true,
            () => false,
          ),
          new Promise<boolean>((resolve) => setTimeout(() => resolve(false), 50)),
        ]);
        if (!answered) ended++;
        client.socket.destroy();
        client.received.length = 0;
        at.events.length = 0;
        at.requests.length = 0;
        if (round % 20 === 0) {
          using watch = new Stopwatch();
          expect(await good.request("ping", { message: "x" }), `seed ${seed}`).toMatchObject({ result: {} });
          expect(watch.ms, `seed ${seed}`).toBeLessThan(2_000);
          good.received.length = 0;
        }
      }
      expect(ended, `seed ${seed}`).toBeGreaterThan(0);
      await good.turnOk(alices, "after");
      await eventually("the ends of the others", () => at.door.clients < 10);
      samples = [];
      expect(heapAtStart).toBeGreaterThan(0);
      const grown = heap() - heapAtStart;
      console.log(`fuzz: ${sent} frames, ${Math.round(grown / 1024)} kB more in use, SEED=${seed}`);
      expect(grown, `seed ${seed}`).toBeLessThan(60 * 1024 * 1024);
    },
    rounds(240_000, 3_600_000),
  );
});

/** The size of the heap in bytes after a garbage collection. */
function heap(): number {
  collectGarbage();
  return process.memoryUsage().heapUsed;
}
