import { expect, it } from "vitest";
import { RawClient } from "../door/raw-client.js";
import { type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { type Serving, serve } from "../fixtures/fleets/serve.js";
import { processorMs } from "../fixtures/stopwatch.js";

const MB = 1024 * 1024;
const VALUES = { code: -32602, message: expect.stringMatching(/^The message has more than 50000 values\./) };
const DEPTH = { code: -32602, message: "The message is nested more than 127 levels deep." };

const elements = (value: string, bytes: number) =>
  `[${Array(Math.floor(bytes / 3))
    .fill(value)
    .join()}]`;
const members = (bytes: number) => {
  const names = Array.from({ length: Math.floor(bytes / 12) }, (_, index) => String(index).padStart(7, "k"));
  return `{${names.map((name) => `"${name}":1`).join()}}`;
};
const nested = (bytes: number) => "[".repeat(bytes / 2) + "]".repeat(bytes / 2);
type Hostile = [kind: string, make: (bytes: number) => string, error: object];
const HOSTILE: [Hostile, Hostile, Hostile, Hostile] = [
  ["[{},{},…]", (bytes) => elements("{}", bytes), VALUES],
  ["[[],[],…]", (bytes) => elements("[]", bytes), VALUES],
  ["keys", members, VALUES],
  ["nesting", nested, DEPTH],
];

/** The processor time that parsing a hostile frame of 8 MB takes here and now, in milliseconds. */
function parsingMs(): number {
  const frame = elements("{}", 8 * MB);
  const before = process.cpuUsage();
  JSON.parse(frame);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}
const CHEAPLY_MS = parsingMs() / 4;

/** A request of about `bytes` bytes. */
function frameOf(id: number, make: (bytes: number) => string, bytes: number): Buffer {
  const [before, behind] = [`{"jsonrpc":"2.0","id":${id},"method":"session.getMessages","params":{"a":`, "}}"];
  return Buffer.from(`${before}${make(bytes - before.length - behind.length - 2)}${behind}`);
}

async function clientOf(fleet: FaultFleet, serving: Serving, user: string): Promise<RawClient> {
  const { token } = await fleet.json<{ token: string }>(["token", "issue", "--user", user]);
  return await RawClient.as(String((await serving.logged("serving")).door), token);
}

/** Sends one ping after another. `end` resolves with the longest delay of a ping, in milliseconds. */
function pinging(client: RawClient, pid: number): { end(): Promise<number> } {
  let going = true;
  let longestMs = 0;
  const over = (async () => {
    while (going) {
      const [begun, used] = [performance.now(), processorMs(pid)];
      expect(await client.request("ping")).toMatchObject({ result: {} });
      // Count at most the processor time that `serve` used during the ping. Other programs cause any longer delay.
      longestMs = Math.max(longestMs, Math.min(performance.now() - begun, processorMs(pid) - used));
    }
  })();
  return {
    end: async () => {
      going = false;
      await over;
      return longestMs;
    },
  };
}

it("the front door refuses hostile frames with little processor time, and answers other clients promptly", async () => {
  const fleet = await faultFleet();
  const serving = await serve(fleet);
  const [alice, mallory] = [await clientOf(fleet, serving, "alice"), await clientOf(fleet, serving, "mallory")];
  const pings = pinging(alice, serving.pid);
  for (const [id, [kind, make, error]] of HOSTILE.entries()) {
    const frame = frameOf(id, make, 8 * MB);
    const before = processorMs(serving.pid);
    mallory.frame(frame);
    expect((await mallory.answerTo(id)).error, kind).toEqual(error);
    expect(processorMs(serving.pid) - before, kind).toBeLessThan(CHEAPLY_MS);
  }
  const message = 'a "text"\n'.repeat(600_000);
  expect((await mallory.request("ping", { message })).result).toMatchObject({ message: `pong: ${message}` });

  const frame = frameOf(60, (bytes) => elements("{}", bytes), 60 * MB);
  const before = processorMs(serving.pid);
  mallory.frame(frame);
  expect((await mallory.answerTo(null)).error).toEqual({
    code: -32700,
    message: `A frame has ${frame.length} bytes. At most ${8 * MB} are allowed.`,
  });
  expect(processorMs(serving.pid) - before).toBeLessThan(CHEAPLY_MS);
  await mallory.end();
  expect(await pings.end()).toBeLessThan(CHEAPLY_MS);
  await serving.end();
});

it("the front door answers other clients promptly while it refuses hostile 60 MB frames within serve.maxFrame", async () => {
  const fleet = await faultFleet({ COPILOTFLEET_SERVE_MAX_FRAME: "64mb" });
  const serving = await serve(fleet);
  const [alice, mallory] = [await clientOf(fleet, serving, "alice"), await clientOf(fleet, serving, "mallory")];
  const pings = pinging(alice, serving.pid);
  // One frame has too many values, and one is nested too deeply.
  for (const [id, [kind, make, error]] of [HOSTILE[0], HOSTILE[3]].entries()) {
    mallory.frame(frameOf(id, make, 60 * MB));
    expect((await mallory.answerTo(id)).error, kind).toEqual(error);
  }
  expect(await pings.end()).toBeLessThan(CHEAPLY_MS);
  await serving.end();
});
