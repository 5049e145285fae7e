import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { directSession, directTurn, echoModel, heldModel, heldTurn } from "../fixtures/fleets/turns.js";
import { isRunning } from "../fixtures/processes.js";

it("stop waits for a turn that a client began without the fleet", async () => {
  const fleet = await faultFleet();
  const model = await heldModel();
  await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  const reply = await heldTurn(session, model);
  let stopped = false;
  const stopping = fleet.json(["stop", "--user", "alice"]).finally(() => (stopped = true));
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  // Run ps to let some time pass. The stop must still be waiting after it.
  expect(await fleet.ps()).toMatchObject([{ state: "draining" }]);
  expect(stopped).toBe(false);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(await stopping).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
  expect(fleet.processes()).toEqual([]);
  // The next server knows the turn, which shows that the history is complete.
  expect(await fleet.json(["send", "own", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
});

it("restart waits for a turn that a client began without the fleet, and keeps the port", async () => {
  const fleet = await faultFleet();
  const model = await heldModel();
  const { port } = await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  const reply = await heldTurn(session, model);
  const restarting = fleet.json(["restart", "--user", "alice"]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(await restarting).toMatchObject({ stopped: [{ outcome: "drained" }], servers: [{ state: "ready", port }] });
  await expectConsistent(fleet);
});

it("stop --drain-timeout cuts a turn that a client began without the fleet, names the session, and exits with 8", async () => {
  const fleet = await faultFleet();
  const model = await echoModel();
  await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  await directTurn(session, model, 60_000);
  // A stop that waited for the turn or for the configured deadline would count as hung.
  const result = await fleet.run(["stop", "--user", "alice", "--drain-timeout", "500ms", "--json"], {
    env: { COPILOTFLEET_DRAIN_TIMEOUT: "10m" },
  });
  expect(result.code).toBe(8);
  expect(JSON.parse(result.stdout)).toMatchObject({ stopped: [{ outcome: "killed", cut: ["own"] }] });
});

it("spawn and ps do not cut a turn when the stop that waited for the turn was killed", async () => {
  const fleet = await faultFleet();
  const model = await heldModel();
  const { pid } = await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  const reply = await heldTurn(session, model);
  const { child, done } = fleet.start(["stop", "--user", "alice"]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  child.kill("SIGKILL");
  await done;
  expect(await fleet.json(["spawn", "--user", "alice"])).toMatchObject({ created: false, server: { pid } });
  expect(await fleet.ps()).toMatchObject([{ state: "ready", pid }]);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(isRunning(pid ?? 0)).toBe(true);
  await expectConsistent(fleet);
});

it("a spawn while stop drains the server waits for the end of the stop, and then starts the server again", async () => {
  const fleet = await faultFleet();
  const model = await heldModel();
  const { pid, port } = await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  const reply = await heldTurn(session, model);
  const stopping = fleet.json(["stop", "--user", "alice"]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  const spawning = fleet.json<{ server: { pid: number; port: number } }>(["spawn", "--user", "alice"]);
  // By the time this command ends, the spawn has found the server draining.
  expect(await fleet.ps()).toMatchObject([{ state: "draining", pid }]);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(await stopping).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
  const { server } = await spawning;
  expect(server.pid).not.toBe(pid);
  expect(server.port).toBe(port);
  await expectConsistent(fleet);
});
