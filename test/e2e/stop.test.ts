import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Stopped } from "../../src/servers/stop.js";
import { testFleet } from "../fixtures/commands/cli.js";
import type { Running } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/** Tests stop and restart during a turn. They must not cut the turn before the drain deadline. */

const model = await startHeldModel();
afterAll(() => model.close());
const fleet = testFleet({ ...model.env, COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
const ALICE = ["--user", "alice"];

beforeAll(async () => {
  await fleet.create("alice", "s");
});
/** Ends the turn that a failed test left running. */
afterEach(() => model.release());

/** Starts a `send` whose turn lasts until the model releases it. */
async function turn(): Promise<Running> {
  const running = await fleet.turn("alice", "s", "!hold reply");
  await eventually("the model", () => model.held() === 1);
  return running;
}

/** Starts a stop, and resolves when the stop waits for the turn. */
async function waitingStop(...flags: string[]): Promise<Running> {
  const running = fleet.start(["stop", ...ALICE, ...flags]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  return running;
}

describe("stop during a turn", () => {
  it("stop waits for a turn, and the client gets the reply", async () => {
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

  it("stop cuts a turn at the drain deadline, names the session, and exits with 8", async () => {
    const sending = await turn();
    using took = new Stopwatch();
    const ran = await fleet.run(["stop", ...ALICE, "--drain-timeout", "200ms", "--json"]);
    expect(took.ms).toBeLessThan(5_000);
    expect(ran).toMatchObject({ code: 8, stderr: "" });
    expect(ran.json<{ stopped: Stopped[] }>().stopped).toMatchObject([{ outcome: "killed", cut: ["s"] }]);
    expect(await sending.done).toMatchObject({
      code: 8,
      stdout: "",
      stderr: expect.stringMatching(
        /^Error: The server of session "s" was stopped during the turn\. \[FLEET_TURN_CUT\]\n/,
      ),
    });
  });

  it("stop --force cuts a turn at once, and exits with 8", async () => {
    const sending = await turn();
    using took = new Stopwatch();
    const ran = await fleet.run(["stop", "--all", "--force"]);
    expect(took.ms).toBeLessThan(3_000);
    expect(ran).toMatchObject({ code: 8, stdout: expect.stringMatching(/killed +s\n/), stderr: "" });
    expect(await sending.done).toMatchObject({ code: 8, stderr: expect.stringContaining("FLEET_TURN_CUT") });
  });

  it("restart waits for a turn, and the client gets the reply", async () => {
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

  it("create during a stop waits until the drain has ended, and then starts the server again", async () => {
    const sending = await turn();
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    const creating = fleet.create("alice", "meanwhile");
    // By the time this command ends, create has already found the server draining.
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

describe("a stop that is interrupted", () => {
  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("on %s, stop exits with %i and cuts no turn, and the server stays ready", async (signal, exit) => {
    // An earlier version took the signal for the end of the drain deadline, and cut the turns that it waited for.
    const sending = await turn();
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    stopping.child.kill(signal);
    expect(await stopping.done).toMatchObject({ code: exit, stdout: "", stderr: "" });
    expect(await fleet.server("alice")).toMatchObject({ state: "ready", pid });
    model.release();
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/), stderr: "" });
  });

  it.each(["ps", "create", "stop"])("a killed stop cuts no turn, even if %s runs next", async (next) => {
    // In an earlier version, the next command completed the killed stop at once, which cut the turn.
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
