import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { heldModel, openLibrary } from "../fixtures/fleets/turns.js";
import { killed } from "../fixtures/processes.js";
import { stepInHistory } from "../fixtures/sessions/session-history.js";

async function recycled(serving: Serving, reason: string, times: number): Promise<void> {
  await eventually(
    `${times} servers recycled`,
    async () => (await serving.metric("server_recycles_total", { reason })) >= times,
    60_000 + times * 15_000, // one recycle took 4.4 s on a busy machine with two cores
  );
}

it("serve counts a turn of a killed server as cut once, but not a turn that was cut before serve started", async () => {
  const model = await heldModel();
  const fleet = await faultFleet({ ...FAST_HEALTH, ...model.env });
  let serving = await serve(fleet);
  const cut = async () => await serving.metric("turns_total", { outcome: "cut" });
  const inFlight = async () => await serving.metric("turns_in_flight");
  const cutTurn = async (prompt: string, end: () => Promise<unknown>) => {
    const turn = fleet.run(["send", "s", `!hold ${prompt}`, "--user", "alice"]);
    await eventually("the turn", () => model.held(prompt) === 1);
    // Wait until the prompt is in the history. Before that, the metric may still count the previous turn, and a kill
    // would leave no trace of the turn.
    await stepInHistory((await fleet.record("alice")).home, "s");
    await eventually("the turn is seen", async () => (await inFlight()) === 1);
    await end();
    expect((await turn).code).not.toBe(0);
  };
  await fleet.json(["create", "--user", "alice", "--id", "s", "--prompt", "hi"]);
  await cutTurn("first", async () => await killed((await fleet.record("alice")).process?.pid ?? null));
  await eventually("the cut is counted", async () => (await cut()) > 0 && (await inFlight()) === 0);
  await fleet.json(["send", "s", "back", "--user", "alice"]);
  await cutTurn("second", async () => await fleet.run(["stop", "--all", "--force"]));
  await eventually("the second cut is counted", async () => (await cut()) > 1 && (await inFlight()) === 0);
  await fleet.json(["send", "s", "back again", "--user", "alice"]);
  const looks = async () => {
    const probes = await serving.metric("probes_total");
    await eventually("some rounds", async () => (await serving.metric("probes_total")) >= probes + 3);
  };
  await looks();
  expect(await cut()).toBe(2);
  await serving.end();

  // While no serve runs, a turn is cut and the session is loaded again.
  const turn = fleet.run(["send", "s", "!hold third", "--user", "alice"]);
  await eventually("the turn", () => model.held("third") === 1);
  await stepInHistory((await fleet.record("alice")).home, "s");
  await killed((await fleet.record("alice")).process?.pid ?? null);
  await turn;
  serving = await serve(fleet);
  await looks();
  expect(await inFlight()).toBe(0);
  await fleet.json(["send", "s", "and again", "--user", "alice"]);
  await eventually("the turn is counted", async () => {
    const completed = await serving.metric("turns_total", { outcome: "completed" });
    return completed === 1 && (await inFlight()) === 0;
  });
  expect(await cut()).toBe(0);
  await serving.end();
});

it("an open session works even after its server was recycled, restarted, stopped or killed between turns", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const library = await openLibrary(fleet);
  const session = await library.sessions.create({ user: "alice", sessionId: "s" });
  let turn = 0;
  const next = async (after: string) => {
    turn += 1;

    expect(await library.sessions.send(session, after), after).toMatchObject({ text: `[turn ${turn}] ${after}` });
  };
  await next("the start");
  let serving = await serve(fleet);
  const pidNow = async () => (await fleet.record("alice")).process?.pid ?? null;
  for (const args of [["restart"], ["restart", "--force"], ["restart", "--rolling"], ["stop"], ["stop", "--force"]]) {
    await fleet.json([...args, "--user", "alice"]);
    await next(args.join(" "));
  }
  await killed(await pidNow());
  await next("a crash");
  await eventually("the monitor", async () => {
    const pid = await pidNow();
    return serving.log().some(({ serverPid, msg }) => serverPid === pid && msg.startsWith("watching"));
  });
  const hung = await pidNow();
  process.kill(hung ?? 0, "SIGSTOP");
  await eventually(
    "the end of the server that hangs",
    async () => {
      const pid = await pidNow();
      return pid !== null && pid !== hung;
    },
    40_000,
  );
  await next("a hang");
  await serving.end();
  serving = await serve(fleet, { env: { COPILOTFLEET_RECYCLE_MAX_AGE: "1s" } });
  await next("a drain");
  await recycled(serving, "age", 1);
  await next("a recycling");
  await serving.end();
});
