import { approveAll, CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { expect, it, onTestFinished } from "vitest";
import { startEchoModel } from "../../src/providers/echo.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { isRunning } from "../fixtures/processes.js";

const SLEEPY = { ...FAST_HEALTH, COPILOTFLEET_POOL_IDLE_TIMEOUT: "4s" };

async function asleep(fleet: FaultFleet, user: string): Promise<boolean> {
  return (await fleet.record(user)).state === "stopped";
}

async function client(fleet: FaultFleet, user: string): Promise<CopilotClient> {
  const { url, token } = await fleet.json<{ url: string; token: string }>(["connect", "--user", user]);
  const connected = new CopilotClient({ connection: RuntimeConnection.forUri(url, { connectionToken: token }) });
  onTestFinished(() => connected.forceStop());
  await connected.start();
  return connected;
}

it("serve stops the servers of idle users, but no server with a client, and a stopped server starts on demand", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const model = await startEchoModel();
  onTestFinished(() => model.close());
  for (const user of ["away", "connected", "talking"]) await fleet.spawn(user);
  await fleet.json(["create", "--id", "talk", "--user", "away", "--prompt", "hi"]);
  const connected = await client(fleet, "connected");
  const talking = await client(fleet, "talking");
  await talking.createSession({
    sessionId: "own",
    model: "gpt-5",
    onPermissionRequest: approveAll,
    provider: { type: "openai", wireApi: "completions", baseUrl: model.baseUrl, apiKey: "echo" },
  });
  const before = await fleet.record("away");
  const serving = await serve(fleet, { env: SLEEPY });
  await eventually("the sleep of the one that nobody uses", () => asleep(fleet, "away"));
  expect(await serving.logged(/was idle and was stopped/)).toMatchObject({ server: before.id, outcome: "drained" });
  expect(isRunning(before.process?.pid ?? 0)).toBe(false);
  // Wait longer than it took until the server of "away" was stopped.
  const until = performance.now() + 5_500;
  await eventually("some more time", async () => {
    expect(await asleep(fleet, "connected")).toBe(false);
    expect(await asleep(fleet, "talking")).toBe(false);
    return performance.now() > until;
  });
  // serve itself does not start the stopped server.
  expect(await asleep(fleet, "away")).toBe(true);
  expect(await fleet.json(["send", "talk", "again", "--user", "away"])).toMatchObject({ reply: "[turn 2] again" });
  expect(await fleet.record("away")).toMatchObject({ state: "ready", home: before.home });
  // The other servers may stop once their clients are gone.
  await connected.stop();
  await talking.stop();
  await eventually(
    "everybody's sleep",
    async () => {
      const states = await Promise.all(["away", "connected", "talking"].map((user) => asleep(fleet, user)));
      return states.every(Boolean);
    },
    20_000,
  );
  expect(await serving.metric("server_restarts_total")).toBe(0);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("serve does not stop an idle server during a turn, however long the turn takes", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  await fleet.json(["create", "--id", "talk", "--user", "alice"]);
  const { process: before } = await fleet.record("alice");
  const turn = fleet.json<{ reply: string }>(["send", "talk", "!delay 6000 done", "--user", "alice"]);
  const serving = await serve(fleet, { env: SLEEPY });
  expect(await turn).toMatchObject({ reply: "[turn 1] done" });
  expect((await fleet.record("alice")).process).toEqual(before);
  await eventually("the sleep", () => asleep(fleet, "alice"));
  expect(await serving.end()).toMatchObject({ code: 0 });
});
