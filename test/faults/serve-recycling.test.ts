import { expect, it } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import { isBindable } from "../../src/servers/surroundings.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, fake, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { heldModel } from "../fixtures/fleets/turns.js";
import { isRunning } from "../fixtures/processes.js";

/**
 * Every server soon exceeds this age. Still, a test sees only one recycle, because the pause between two recycles is
 * longer than a test.
 */
const OLD = { COPILOTFLEET_RECYCLE_MAX_AGE: "1s" };

async function withTalks(fleet: FaultFleet): Promise<ServerRecord> {
  for (const id of ["talk", "other"]) {
    await fleet.json(["create", "--id", id, "--user", "alice", "--prompt", "hi"]);
  }
  return await fleet.record("alice");
}

async function recycled(serving: Serving, reason: string): Promise<void> {
  expect(await serving.logged(/ was recycled$/, { withinMs: 20_000 })).toMatchObject({ reason });
}

// The limit of memory is tested in test/faults/serve-session-processes.test.ts.
it("serve recycles a server once when it exceeds its age", async () => {
  const fleet = await faultFleet({ ...FAST_HEALTH, ...OLD });
  const before = await withTalks(fleet);
  const serving = await serve(fleet);
  await recycled(serving, "age");
  const after = await fleet.record("alice");
  expect(after).toMatchObject({ id: before.id, user: "alice", home: before.home, state: "ready", replacement: null });
  expect(after.process?.pid).not.toBe(before.process?.pid);
  expect(isRunning(before.process?.pid ?? 0)).toBe(false);
  expect(await isBindable("127.0.0.1", before.port ?? 0)).toBe(true);
  expect(after.crashes ?? 0).toBe(0);
  for (const id of ["talk", "other"]) {
    expect(await fleet.json(["send", id, "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
  }
  await expectConsistent(fleet);
  // The new process exceeds the limit as well, but serve must not recycle the server again. Wait for more checks.
  const probes = await serving.metric("probes_total");
  await eventually("more rounds", async () => (await serving.metric("probes_total")) >= probes + 5);
  expect(await serving.metric("server_recycles_total", { reason: "age" })).toBe(1);
  expect(await serving.metric("server_recycles_total")).toBe(1);
  expect(await serving.metric("server_restarts_total")).toBe(0);
  expect((await fleet.record("alice")).process).toEqual(after.process);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("serve recycles a server only after the turn on it has ended", async () => {
  const model = await heldModel();
  const fleet = await faultFleet({ ...FAST_HEALTH, ...model.env, COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
  const before = await withTalks(fleet);
  const turn = fleet.json<{ reply: string }>(["send", "talk", "!hold done", "--user", "alice"]);
  await eventually("the turn", () => model.held() === 1);
  const serving = await serve(fleet, { env: OLD });
  await eventually("the turn is seen", async () => (await serving.metric("turns_in_flight")) === 1);
  const probes = await serving.metric("probes_total");
  await eventually("some rounds", async () => {
    expect((await fleet.record("alice")).process, "while the turn goes on").toEqual(before.process);
    return (await serving.metric("probes_total")) >= probes + 8;
  });
  model.release();
  expect(await turn).toMatchObject({ reply: "[turn 2] done" });
  await recycled(serving, "age");
  expect((await fleet.record("alice")).process?.pid).not.toBe(before.process?.pid);
  expect(await fleet.json(["send", "talk", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 3] again" });
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("the old process keeps serving when its replacement does not start during a recycle", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const before = await withTalks(fleet);
  const serving = await serve(fleet, { env: { ...OLD, COPILOT_CLI_PATH: fake("exits.mjs") } });
  const trouble = await serving.logged(/could not be recycled/);
  expect(trouble).toMatchObject({ level: "error", code: "FLEET_SERVER_EXITED", server: before.id });
  expect(trouble.msg).toContain("the frobnicator");
  expect(await fleet.record("alice")).toMatchObject({
    state: "ready",
    process: before.process,
    port: before.port,
    claim: null,
    replacement: null,
  });
  expect(await fleet.json(["send", "talk", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
  expect(await serving.metric("server_recycles_total")).toBe(0);
  expect(await serving.metric("servers", { state: "ready" })).toBe(1);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("a server has exactly one process, the old one or its replacement, after serve is killed during a recycle", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  await withTalks(fleet);
  for (let round = 0; round < rounds(3, 100); round++) {
    const killed = await serve(fleet, { env: OLD });
    await killed.logged(/^recycling server/);
    const afterMs = Math.random() * 150;
    const until = performance.now() + afterMs;
    await eventually("the moment", () => performance.now() >= until);
    killed.kill("SIGKILL");
    await killed.done;
    const left = await fleet.record("alice");
    const next = await serve(fleet);
    const story = `killed ${afterMs} ms after the beginning; found ${JSON.stringify(left)}`;
    await eventually(
      `the server, ${story}`,
      async () => {
        const { state, replacement, process: found } = await fleet.record("alice");
        // `replacement` is undefined if serve was killed before it began to replace the server.
        return state === "ready" && replacement == null && found !== null && isRunning(found.pid);
      },
      30_000,
    );
    const after = await fleet.record("alice");
    // The remaining process is the old one or its replacement, because serve had no reason to start a third.
    if (left.state !== "failed") expect([left.launchId, left.replacement?.launchId], story).toContain(after.launchId);
    expect(fleet.servers(), story).toEqual([after.process?.pid]);
    const { reply } = await fleet.json<{ reply: string }>(["send", "talk", "again", "--user", "alice"]);
    expect(reply, story).toBe(`[turn ${round + 2}] again`);
    await expectConsistent(fleet);
    next.kill("SIGKILL");
    await next.done;
  }
});
