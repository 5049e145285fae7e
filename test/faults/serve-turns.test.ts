import { setTimeout as delay } from "node:timers/promises";
import type { CopilotSession } from "@github/copilot-sdk";
import { expect, it } from "vitest";
import type { Fleet } from "../../src/fleet/fleet.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { heldModel, openLibrary } from "../fixtures/fleets/turns.js";
import { killed } from "../fixtures/processes.js";
import { stepInHistory } from "../fixtures/sessions/session-history.js";

const USERS = ["alice", "bob", "carol", "dave"].slice(0, rounds(2, 4));

/** Sends prompts until the signal aborts, and expects an answer to each. Resolves with the number of turns. */
async function sendOn(library: Fleet, session: CopilotSession, pauseMs: number, until: AbortSignal): Promise<number> {
  for (let turn = 1; ; turn++) {
    const { text } = await library.sessions.send(session, `!delay ${(turn * 37) % 200} done`);
    expect(text).toBe(`[turn ${turn}] done`);
    if (until.aborted) return turn;
    await delay(((turn * 61) % 100) * (pauseMs / 100));
  }
}

async function commandOn(fleet: FaultFleet, user: string, until: AbortSignal): Promise<number> {
  await fleet.json(["create", "--user", user, "--id", "by-command"]);
  for (let turn = 1; ; turn++) {
    const sent = await fleet.json(["send", "by-command", "!delay 50 done", "--user", user]);
    expect(sent).toMatchObject({ reply: `[turn ${turn}] done` });
    if (until.aborted) return turn;
    await delay(rounds(1_000, 0));
  }
}

/**
 * Runs `work` while clients send all the time: two library sessions per user, with pauses of up to `pauseMs`
 * milliseconds, and commands of one user.
 */
async function underLoad(fleet: FaultFleet, pauseMs: number, work: () => Promise<void>): Promise<void> {
  const library = await openLibrary(fleet);
  for (const user of USERS) await library.servers.spawn(user);
  const sessions = await Promise.all(
    USERS.flatMap((user) => [0, 1].map((n) => library.sessions.create({ user, sessionId: `${user}-${n}` }))),
  );
  const stop = new AbortController();
  const load = Promise.all([
    ...sessions.map((session) => sendOn(library, session, pauseMs, stop.signal)),
    commandOn(fleet, "alice", stop.signal),
  ]);
  try {
    await Promise.race([work(), load]);
  } finally {
    stop.abort();
  }
  const turns = await load;
  console.log(`${turns.reduce((sum, count) => sum + count, 0)} turns answered`);
}

async function recycled(serving: Serving, reason: string, times: number): Promise<void> {
  await eventually(
    `${times} servers recycled`,
    async () => (await serving.metric("server_recycles_total", { reason })) >= times,
    60_000 + times * 15_000, // one recycle took 4.4 s on a busy machine with two cores
  );
}

it("no turn is lost and none fails when serve recycles servers under load", async () => {
  const fleet = await faultFleet({
    COPILOTFLEET_HEALTH_INTERVAL: "300ms",
    COPILOTFLEET_HEALTH_TIMEOUT: "2s", // answers are slow under this load
    COPILOTFLEET_HEALTH_FAILURES: "10",
    COPILOTFLEET_RECYCLE_MAX_AGE: "1s",
  });
  const serving = await serve(fleet);
  // The clients pause between turns, because a recycle would otherwise wait minutes for a moment without a turn.
  const servers = () => serving.log().flatMap(({ msg, server }) => (/ was recycled$/.test(msg) ? [server] : []));
  await underLoad(fleet, rounds(2_000, 1_000), async () => {
    await recycled(serving, "age", rounds(2, 12));
    await eventually("more than one server was recycled", () => new Set(servers()).size > 1, 60_000);
  });
  expect(serving.log().filter(({ level }) => level === "error")).toEqual([]);
  expect((await serving.end()).code).toBe(0);
});

it("no turn is lost and none fails during a rolling restart under load", async () => {
  const fleet = await faultFleet();
  const serving = await serve(fleet);
  // In the long form, the clients send without pauses, so that each server always has a turn.
  await underLoad(fleet, rounds(1_000, 0), async () => {
    for (let round = 0; round < rounds(2, 20); round++) {
      const before = new Set((await fleet.ps()).map(({ pid }) => pid));
      const args = ["restart", "--all", "--rolling", "--max-unavailable", "2"];
      const { stopped, servers } = await fleet.json<{ stopped: unknown[]; servers: { pid: number }[] }>(args);
      expect(stopped).toHaveLength(USERS.length);
      for (const server of stopped) expect(server).toMatchObject({ outcome: "drained", cut: [] });
      expect(servers.filter(({ pid }) => before.has(pid))).toEqual([]);
    }
  });
  await expectConsistent(fleet);
  await serving.end();
});

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
