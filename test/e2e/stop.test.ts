import { beforeAll, describe, expect, it } from "vitest";
import type { Stopped } from "../../src/pool/stopping.js";
import { PORTS, type Running, testFleet } from "../fixtures/cli.js";
import { eventually } from "../fixtures/fault-fleet.js";

/** What stop and restart do while a turn is under way: nothing may be lost inside the drain deadline. */

const fleet = testFleet(PORTS.stop);
const ALICE = ["--user", "alice"];

beforeAll(async () => {
  await fleet.create("alice", "s");
});

const turn = (ms: number): Promise<Running> => fleet.turn("alice", "s", `!delay ${ms} reply`);

/** A stop that waits for the turn when this resolves. */
async function waitingStop(): Promise<Running> {
  const running = fleet.start(["stop", ...ALICE]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  return running;
}

describe("stop during a turn", () => {
  it("waits for it, and its client gets its reply", async () => {
    const sending = await turn(1200);
    expect(await fleet.json(["stop", ...ALICE])).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
    expect(await sending.done).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\[turn \d+\] reply\n$/),
      stderr: "",
    });
    expect(await fleet.server("alice")).toMatchObject({ state: "stopped", pid: null });
  });

  it("cuts it when the drain deadline is over, names it, and exits with 8", async () => {
    const sending = await turn(30_000);
    const begun = performance.now();
    const ran = await fleet.run(["stop", ...ALICE, "--drain-timeout", "200ms", "--json"]);
    expect(performance.now() - begun).toBeLessThan(5_000);
    expect(ran).toMatchObject({ code: 8, stderr: "" });
    expect(ran.json<{ stopped: Stopped[] }>().stopped).toMatchObject([{ outcome: "killed", cut: ["s"] }]);
    expect(await sending.done).toMatchObject({ code: 7, stdout: "", stderr: expect.stringContaining("server ended") });
  });

  it("--force cuts it at once", async () => {
    const sending = await turn(30_000);
    const begun = performance.now();
    const ran = await fleet.run(["stop", "--all", "--force"]);
    expect(performance.now() - begun).toBeLessThan(3_000);
    expect(ran).toMatchObject({ code: 8, stdout: expect.stringMatching(/killed +s\n/), stderr: "" });
    expect(await sending.done).toMatchObject({ code: 7 });
  });

  it("restart waits for it, too", async () => {
    const sending = await turn(1000);
    expect(await fleet.json(["restart", ...ALICE])).toMatchObject({
      stopped: [{ outcome: "drained", cut: [] }],
      servers: [{ state: "ready" }],
    });
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/) });
  });

  it("admits nothing new: who comes meanwhile gets the next server", async () => {
    const sending = await turn(1200);
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    await fleet.create("alice", "meanwhile");
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
    const sending = await turn(2000);
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    stopping.child.kill(signal);
    expect(await stopping.done).toMatchObject({ code: exit, stdout: "", stderr: "" });
    expect(await fleet.server("alice")).toMatchObject({ state: "ready", pid });
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/), stderr: "" });
  });

  it.each(["ps", "create", "stop"])("by kill -9 cuts nothing either, whoever comes next (%s)", async (next) => {
    // The next command finished the dead one's stop, with the turn still under way.
    const sending = await turn(2000);
    const { pid } = await fleet.server("alice");
    const stopping = await waitingStop();
    stopping.child.kill("SIGKILL");
    await stopping.done;
    if (next === "ps") expect(await fleet.server("alice")).toMatchObject({ state: "ready", pid });
    if (next === "create") await fleet.ok(["create", ...ALICE]);
    if (next === "stop")
      expect(await fleet.json(["stop", ...ALICE])).toMatchObject({ stopped: [{ outcome: "drained" }] });
    expect(await sending.done).toMatchObject({ code: 0, stdout: expect.stringMatching(/reply\n$/), stderr: "" });
  });
});
