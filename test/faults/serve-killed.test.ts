import { expect, it } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve, startServe } from "../fixtures/fleets/serve.js";
import { directSession, directTurn, echoModel, openLibrary, turnsBefore } from "../fixtures/fleets/turns.js";
import { isRunning } from "../fixtures/processes.js";
import { seededRandom } from "../fixtures/random.js";

/** serve is killed at a random moment within about this time, in milliseconds. Its start takes about 300 ms. */
const LATEST_MS = 2_500;

/** A disturbance while serve works: a server dies, serve gets the signal to drain, or nothing happens. */
async function disturb(fleet: FaultFleet, random: () => number, drain: () => void): Promise<void> {
  const what = random();
  await new Promise((resolve) => setTimeout(resolve, random() * 1_500));
  if (what < 0.2) drain();
  else if (what < 0.8) {
    const victim = (await fleet.record("victim")).process?.pid;
    if (victim !== undefined && fleet.processes().includes(victim)) process.kill(victim, "SIGKILL");
  }
}

it(
  "after serve is killed at any moment, the next serve adopts every server exactly once, and no turn is lost",
  async () => {
    // This test is not about crash loops.
    const fleet = await faultFleet({ ...FAST_HEALTH, COPILOTFLEET_HEALTH_RESTARTS: "1000" });
    const random = seededRandom("kill serve");
    const model = await echoModel();
    const library = await openLibrary(fleet);
    const users = ["direct", "fleet", "victim", "other"];
    for (const user of users) await library.servers.spawn(user);
    const victims = await library.sessions.create({ user: "victim", sessionId: "of-victim" });
    await library.sessions.send(victims, "hi");
    const open = await library.sessions.create({ user: "fleet", sessionId: "by-library" });
    let answered = 0;
    let directly = 0;
    for (let round = 0; round < rounds(3, 100); round++) {
      // Servers are recycled all the time, so serve is also killed during a recycle.
      const restless = { COPILOTFLEET_RECYCLE_MAX_AGE: "1s", COPILOTFLEET_HEALTH_TIMEOUT: "900ms" };
      const serving = startServe(fleet, { env: restless });
      const timer = setTimeout(() => serving.kill("SIGKILL"), 200 + random() * LATEST_MS);
      const session = await directSession(fleet, model, "by-client", { user: "direct", resume: directly > 0 }).catch(
        () => null, // the server is being recycled at this moment, so there is no turn to cut
      );
      const reply =
        session === null ? null : await directTurn(session, model, Math.floor(random() * 2_500)).catch(() => null);
      const disturbing = disturb(fleet, random, () => serving.kill("SIGTERM"));
      for (let over = false; !over; ) {
        over = (await Promise.race([serving.done, null])) !== null;
        // serve may refuse the turn, but must not cut it.
        const text = await library.sessions.send(open, "!delay 100 done").then(
          (sent) => sent.text,
          (error: unknown) => (isFleetError(error, "FLEET_POOL_DRAINING") ? null : Promise.reject(error)),
        );
        if (text === null) await new Promise((resolve) => setTimeout(resolve, 50));
        else expect(text).toBe(`[turn ${++answered}] done`);
      }
      await disturbing;
      clearTimeout(timer);
      if (reply !== null) expect(await reply()).toBe(`[turn ${++directly}] done`);

      const calm = await serve(fleet);
      let states: unknown;
      const all = async () => {
        const { servers } = await fleet.registry();
        states = Object.values(servers).map(({ id, state, failure }) => ({ id, state, failure }));
        // A server whose process was killed a moment ago is still recorded as ready.
        return Object.values(servers).every(({ state, process }) => state === "ready" && isRunning(process?.pid ?? 0));
      };
      await eventually("all servers", all, 40_000).catch(() =>
        expect({ states, log: calm.log() }).toEqual({ states: "all ready" }),
      );
      const shown = await expectConsistent(fleet);
      expect(shown.map(({ user }) => user).sort()).toEqual([...users].sort());
      expect(calm.log().filter(({ level }) => level === "error")).toEqual([]);
      calm.kill("SIGKILL");
      await calm.done;
    }
    expect(answered).toBeGreaterThan(rounds(3, 100));
    const { text } = await library.sessions.send(victims, "again");
    expect(turnsBefore(text)).toBe(1);
    await expectConsistent(fleet);
  },
  rounds(300_000, 1_800_000),
);
