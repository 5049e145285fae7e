import { expect, it } from "vitest";
import { eventually, expectConsistent, faultFleet, isRunning } from "../fixtures/fault-fleet.js";
import { directSession, directTurn, echoModel, heldModel, heldTurn } from "../fixtures/turns.js";

const PORTS = 31_200;

it("stop waits for a turn that a client began past the fleet", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await heldModel();
  await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  const reply = await heldTurn(session, model);
  let stopped = false;
  const stopping = fleet.json(["stop", "--user", "alice"]).finally(() => (stopped = true));
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  // For as long as another command takes, at least.
  expect(await fleet.ps()).toMatchObject([{ state: "draining" }]);
  expect(stopped).toBe(false);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(await stopping).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
  expect(fleet.processes()).toEqual([]);
  // Its history is whole: the next server knows the turn.
  expect(await fleet.json(["send", "own", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
});

it("restart waits as well, and comes back on the same port", async () => {
  const fleet = await faultFleet(PORTS);
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

it("cuts the turn when the deadline is over, names it, and exits with 8", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await echoModel();
  await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  await directTurn(session, model, 60_000);
  const result = await fleet.run(["stop", "--user", "alice", "--drain-timeout", "500ms", "--json"]);
  expect(result.code).toBe(8);
  expect(JSON.parse(result.stdout)).toMatchObject({ stopped: [{ outcome: "killed", cut: ["own"] }] });
  // Neither the turn nor the usual deadline is waited for.
  expect(result.ms).toBeLessThan(15_000);
});

it("cuts no turn when the stop that waits for it is killed, whatever looks at the server then", async () => {
  const fleet = await faultFleet(PORTS);
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

it("starts the server anew for a spawn that came while it was drained", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await heldModel();
  const { pid, port } = await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  const reply = await heldTurn(session, model);
  const stopping = fleet.json(["stop", "--user", "alice"]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  const spawning = fleet.json<{ server: { pid: number; port: number } }>(["spawn", "--user", "alice"]);
  // As long as another command takes: by then the spawn has come upon the drain.
  expect(await fleet.ps()).toMatchObject([{ state: "draining", pid }]);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(await stopping).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
  const { server } = await spawning;
  expect(server.pid).not.toBe(pid);
  expect(server.port).toBe(port);
  await expectConsistent(fleet);
});
