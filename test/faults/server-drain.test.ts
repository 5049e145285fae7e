import { approveAll, CopilotClient, type CopilotSession, RuntimeConnection } from "@github/copilot-sdk";
import { expect, it, onTestFinished } from "vitest";
import { type EchoModel, startEchoModel } from "../../src/models/echo.js";
import { eventually, expectConsistent, type FaultFleet, faultFleet, isRunning } from "../fixtures/fault-fleet.js";

const PORTS = 31_200;

async function echoModel(): Promise<EchoModel> {
  const model = await startEchoModel();
  onTestFinished(() => model.close());
  return model;
}

/** A session of a client that knows nothing of the fleet but what `connect` tells. */
async function ownSession(fleet: FaultFleet, model: EchoModel, sessionId: string): Promise<CopilotSession> {
  const { url, token } = await fleet.json<{ url: string; token: string }>(["connect", "--user", "alice"]);
  const client = new CopilotClient({ connection: RuntimeConnection.forUri(url, { connectionToken: token }) });
  onTestFinished(() => client.forceStop());
  return await client.createSession({
    sessionId,
    model: "gpt-5",
    onPermissionRequest: approveAll,
    provider: { type: "openai", wireApi: "completions", baseUrl: model.baseUrl, apiKey: "echo" },
  });
}

/** Begins a turn that takes a while, and resolves once the model is at it, with how to wait for its end. */
async function turnOf(
  session: CopilotSession,
  model: EchoModel,
  ms: number,
): Promise<() => Promise<string | undefined>> {
  const before = model.requests;
  const reply = session.sendAndWait({ prompt: `!delay ${ms} done` }, 30_000);
  reply.catch(() => "told by the function below");
  await eventually("the turn", () => model.requests > before);
  return async () => (await reply)?.data.content;
}

it("stop waits for a turn that a client began past the fleet", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await echoModel();
  await fleet.spawn("alice");
  const session = await ownSession(fleet, model, "own");
  const reply = await turnOf(session, model, 2500);
  const begun = performance.now();
  const stopping = fleet.json(["stop", "--user", "alice"]);
  expect(await reply()).toBe("[turn 1] done");
  expect(await stopping).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
  expect(performance.now() - begun).toBeGreaterThan(1_500);
  expect(fleet.processes()).toEqual([]);
  // Its history is whole: the next server knows the turn.
  expect(await fleet.json(["send", "own", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
});

it("restart waits as well, and comes back on the same port", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await echoModel();
  const { port } = await fleet.spawn("alice");
  const session = await ownSession(fleet, model, "own");
  const reply = await turnOf(session, model, 1500);
  const restarting = fleet.json(["restart", "--user", "alice"]);
  expect(await reply()).toBe("[turn 1] done");
  expect(await restarting).toMatchObject({ stopped: [{ outcome: "drained" }], servers: [{ state: "ready", port }] });
  await expectConsistent(fleet);
});

it("cuts the turn when the deadline is over, names it, and exits with 8", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await echoModel();
  await fleet.spawn("alice");
  const session = await ownSession(fleet, model, "own");
  await turnOf(session, model, 20_000);
  const result = await fleet.run(["stop", "--user", "alice", "--drain-timeout", "500ms", "--json"]);
  expect(result.code).toBe(8);
  expect(JSON.parse(result.stdout)).toMatchObject({ stopped: [{ outcome: "killed", cut: ["own"] }] });
  expect(result.ms).toBeLessThan(5_000);
});

it("cuts no turn when the stop that waits for it is killed, whatever looks at the server then", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await echoModel();
  const { pid } = await fleet.spawn("alice");
  const session = await ownSession(fleet, model, "own");
  const reply = await turnOf(session, model, 3000);
  const { child, done } = fleet.start(["stop", "--user", "alice"]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  child.kill("SIGKILL");
  await done;
  expect(await fleet.json(["spawn", "--user", "alice"])).toMatchObject({ created: false, server: { pid } });
  expect(await fleet.ps()).toMatchObject([{ state: "ready", pid }]);
  expect(await reply()).toBe("[turn 1] done");
  expect(isRunning(pid ?? 0)).toBe(true);
  await expectConsistent(fleet);
});

it("starts the server anew for a spawn that came while it was drained", async () => {
  const fleet = await faultFleet(PORTS);
  const model = await echoModel();
  const { pid, port } = await fleet.spawn("alice");
  const session = await ownSession(fleet, model, "own");
  const reply = await turnOf(session, model, 1500);
  const stopping = fleet.json(["stop", "--user", "alice"]);
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  const spawning = fleet.json<{ server: { pid: number; port: number } }>(["spawn", "--user", "alice"]);
  expect(await reply()).toBe("[turn 1] done");
  expect(await stopping).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
  const { server } = await spawning;
  expect(server.pid).not.toBe(pid);
  expect(server.port).toBe(port);
  await expectConsistent(fleet);
});
