import type { CopilotSession } from "@github/copilot-sdk";
import { expect, it } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import type { Fleet } from "../../src/fleet/fleet.js";
import type { EchoModel } from "../../src/providers/echo.js";
import { eventually } from "../fixtures/eventually.js";
import { type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";
import { directSession, echoModel, openLibrary, turnsBefore } from "../fixtures/fleets/turns.js";
import { seededRandom } from "../fixtures/random.js";

const USERS = Array.from({ length: rounds(2, 10) }, (_, index) => `user-${index}`);

/** How many answers each session got, as its clients count them. */
type Answered = Map<string, number>;

/** Sends one prompt after another through the fleet until the pool is draining, and counts the answers. */
async function sendOn(
  library: Fleet,
  session: CopilotSession,
  random: () => number,
  answered: Answered,
): Promise<void> {
  const { sessionId } = session;
  for (;;) {
    const before = answered.get(sessionId) ?? 0;
    const prompt = `!delay ${Math.floor(random() * 700)} done`;
    const reply = await library.sessions.send(session, prompt).catch((error: unknown) => {
      if (isFleetError(error, "FLEET_POOL_DRAINING")) return null;
      throw error;
    });
    if (reply === null) return;
    expect(reply.text).toBe(`[turn ${before + 1}] done`);
    answered.set(sessionId, before + 1);
  }
}

/** Sends prompts with one `send` command after another. */
async function commandOn(fleet: FaultFleet, sessionId: string, user: string, answered: Answered): Promise<void> {
  for (;;) {
    const before = answered.get(sessionId) ?? 0;
    const sending = fleet.start(["send", sessionId, "!delay 200 done", "--user", user, "--json"]);
    const { code, stdout } = await sending.done;
    if (code === 5) {
      expect(stdout).toContain("FLEET_POOL_DRAINING");
      return;
    }
    expect(JSON.parse(stdout)).toMatchObject({ reply: `[turn ${before + 1}] done` });
    answered.set(sessionId, before + 1);
  }
}

/**
 * Runs one turn of a client that bypasses the fleet. Resolves during the turn, with a function that waits for its end.
 */
async function directly(session: CopilotSession, model: EchoModel, ms: number, answered: Answered) {
  const before = answered.get(session.sessionId) ?? 0;
  const requests = model.requests;
  const reply = session.sendAndWait({ prompt: `!delay ${ms} done` }, 60_000);
  reply.catch(() => "told by the function below");
  await eventually("the turn", () => model.requests > requests, 60_000);
  return async () => {
    expect((await reply)?.data.content).toBe(`[turn ${before + 1}] done`);
    answered.set(session.sessionId, before + 1);
  };
}

it(
  `serve loses no turn of ${5 * USERS.length} busy sessions on ${USERS.length} servers, whenever it gets the signal to drain`,
  async () => {
    const fleet = await faultFleet();
    const random = seededRandom("drain busy sessions");
    const library = await openLibrary(fleet);
    const answered: Answered = new Map();
    for (const user of USERS) await library.servers.spawn(user);
    const open = await Promise.all(
      USERS.flatMap((user) => [0, 1, 2].map((n) => library.sessions.create({ user, sessionId: `${user}-fleet-${n}` }))),
    );
    const byCommand = { user: "user-0", id: "by-command" };
    await fleet.json(["create", "--user", byCommand.user, "--id", byCommand.id]);

    for (let round = 0; round < rounds(2, 20); round++) {
      const serving = await serve(fleet);
      await eventually("the servers", async () => (await fleet.ps()).every(({ state }) => state === "ready"), 60_000);
      // Each of these sessions has its own model, whose request count shows when a turn is running.
      const directs = await Promise.all(
        USERS.flatMap((user) =>
          [0, 1].map(async (n) => {
            const model = await echoModel();
            const session = await directSession(fleet, model, `${user}-direct-${n}`, { user, resume: round > 0 });
            return { model, session };
          }),
        ),
      );
      const loops = Promise.all([
        ...open.map((session) => sendOn(library, session, random, answered)),
        commandOn(fleet, byCommand.id, byCommand.user, answered),
      ]);
      loops.catch(() => "told below");
      const turns = await Promise.all(
        directs.map(({ session, model }) => directly(session, model, 500 + Math.floor(random() * 3_500), answered)),
      );
      await new Promise((resolve) => setTimeout(resolve, random() * 1_000));
      const { code, stderr } = await serving.end();
      await loops;
      for (const turn of turns) await turn();
      expect({ code, stderr }, `round ${round}`).toMatchObject({ code: 0 });
      expect(serving.log().at(-1)).toMatchObject({ msg: "drained", cut: [] });
      expect(fleet.processes()).toEqual([]);
    }

    // The histories contain exactly the turns that were answered.
    const serving = await serve(fleet);
    const seen: Answered = new Map();
    for (const [sessionId] of answered) {
      const user = sessionId === byCommand.id ? byCommand.user : (/^user-\d+/.exec(sessionId)?.[0] ?? "");
      const reply = await library.sessions.use(sessionId, "count", { user });
      seen.set(sessionId, turnsBefore(reply.text));
    }
    expect(answered.size).toBe(5 * USERS.length + 1);
    expect(seen).toEqual(answered);
    console.log(`${[...answered.values()].reduce((sum, count) => sum + count, 0)} turns answered`);
    await serving.end();
  },
  rounds(240_000, 1_800_000),
);
