import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Stopped } from "../../src/pool/stopping.js";
import { PORTS, type Running, testFleet } from "../fixtures/cli.js";
import { eventually } from "../fixtures/fault-fleet.js";
import { startHeldModel } from "../fixtures/held-model.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/** What stop and restart do while a turn is under way: nothing may be lost inside the drain deadline. */

const model = await startHeldModel();
afterAll(() => model.close());
const fleet = testFleet(PORTS.stop, { ...model.env, COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
const ALICE = ["--user", "alice"];

beforeAll(async () => {
  await fleet.create("alice", "s");
});

/** A `send` whose turn is under way until the model releases it. */
async function turn(): Promise<Running> {
  const running = await fleet.turn("alice", "s", "!hold reply");
  await eventually("the model", () => model.held() === 1);
  return running;
}

/** A stop that waits for the turn when this resolves. */
async function waitingStop(...flags: string[]): Promise<Running> {
  const running = fleet.start(["stop", ...ALICE, ...flags]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  return running;
}

describe("stop during a turn", () => {
  it("waits for it, and its client gets its reply", async () => {
    const sending = await turn();
    const stopping = await waitingStop("--json");
    model.release();
    expect((await stopping.done).json()).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
    expect(await sending.done).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\[turn \d+\] reply\n$/),
      stderr: "",
    });
    expect(await fleet.server("alice")).toMatchObject({ state: "stopped", pid: null });
  });

  it("cuts it when the drain deadline is over, names it, and exits with 8", async () => {
    const sending = await turn();
    using took = new Stopwatch();
    const ran = await fleet.run(["stop", ...ALICE, "--drain-timeout", "200ms", "--json"]);
    expect(took.ms).toBeLessThan(5_000);
    expect(ran).toMatchObject({ code: 8, stderr: "" });
    expect(ran.json<{ stopped: Stopped[] }>().stopped).toMatchObject([{ outcome: "killed", cut: ["s"] }]);
    expect(await sending.done).toMatchObject({ code: 7, stdout: "", stderr: expect.stringContaining("server ended") });
  });

  it("--force cuts it at once", async () => {
    const sending = await turn();
    using took = new Stopwatch();
    const ran = await fleet.run(["stop", "--all", "--force"]);
    expect(took.ms).toBeLessThan(3_000);
    expect(ran).toMatchObject({ code: 8, stdout: expect.stringMatching(/killed +s\n/), stderr: "" });
    expect(await sending.done).toMatchObject({ code: 7 });
  });

  it("restart waits for it, too", async () => {
    const sending = await turn();
    const restarting = fleet.json(["restart", ...ALICE]);
    await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
    model.release();
    expect(await restarting).toMatchObject({
      stopped: [{ outcome: "drained", cut: [] }],
      servers: [{ state: "ready" }],
    });
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/) });
  });

  it("admits nothing new: who comes meanwhile gets the next server", async () => {
    const sending = await turn();
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    const creating = fleet.create("alice", "meanwhile");
    // As long as another command takes: by then that one has come upon the drain.
    expect(await fleet.server("alice")).toMatchObject({ state: "draining", pid });
    model.release();
    await creating;
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/) });
    expect(await stopping.done).toMatchObject({ code: 0 });
    const after = await fleet.server("alice");
    expect(after.state).toBe("ready");
    expect(after.pid).not.toBe(pid);
    expect(await fleet.send("alice", "meanwhile", "hi")).toBe("[turn 1] hi");
  });
});

describe("a stop that is given up", () => {
  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("by %s cuts nothing: the server serves on", async (signal, exit) => {
    // It was taken for the end of the drain deadline, and cut the turns it was waiting for.
    const sending = await turn();
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    stopping.child.kill(signal);
    expect(await stopping.done).toMatchObject({ code: exit, stdout: "", stderr: "" });
    expect(await fleet.server("alice")).toMatchObject({ state: "ready", pid });
    model.release();
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/), stderr: "" });
  });

  it.each(["ps", "create", "stop"])("by kill -9 cuts nothing either, whoever comes next (%s)", async (next) => {
    // The next command finished the dead one's stop, with the turn still under way.
    const sending = await turn();
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    stopping.child.kill("SIGKILL");
    await stopping.done;
    if (next === "ps") expect(await fleet.server("alice")).toMatchObject({ state: "ready", pid });
    if (next === "create") await fleet.ok(["create", ...ALICE]);
    const again = next === "stop" ? await waitingStop("--json") : undefined;
    model.release();
    if (again !== undefined) expect((await again.done).json()).toMatchObject({ stopped: [{ outcome: "drained" }] });
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/), stderr: "" });
  });
});
