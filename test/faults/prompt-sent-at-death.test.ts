import { setTimeout as delay } from "node:timers/promises";
import { approveAll } from "@github/copilot-sdk";
import { afterAll, beforeAll, expect, it } from "vitest";
import { DoorFleet } from "../door/harness.js";
import { eventually } from "../fixtures/eventually.js";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { unused } from "../fixtures/sessions/unused.js";

const KILLS = rounds(4, 500);
/** The prompt is sent within this time, and the server is killed within twice this time. A turn takes about 30 ms. */
const AROUND_MS = 25;

let at: DoorFleet;
beforeAll(async () => {
  at = await DoorFleet.open();
});
afterAll(async () => {
  await at[Symbol.asyncDispose]();
});

/**
 * Sends a prompt at about the moment at which ann's server is killed.
 * @returns the reply, or the error
 */
async function around(say: () => Promise<string | undefined>): Promise<{ reply?: string | undefined; error?: Error }> {
  const { pid } = await at.serverOf("ann");
  const [sendAfterMs, killAfterMs] = [Math.random() * AROUND_MS, Math.random() * 2 * AROUND_MS];
  const killed = delay(killAfterMs).then(() => process.kill(pid, "SIGKILL"));
  await delay(sendAfterMs);
  const outcome = await say().then(
    (reply) => ({ reply }),
    (error: Error) => ({ error }),
  );
  await killed;
  return outcome;
}

/** Expects that the prompt ran once and was answered, or that it failed with its server and ran at most once. */
function expectOnce(prompt: string, { reply, error }: { reply?: string | undefined; error?: Error }): void {
  const shown = at.model.shown(prompt);
  if (error === undefined) {
    expect(reply).toBe(`you said: ${prompt}`);
    expect(shown, prompt).toBe(1);
    return;
  }
  const lastEvents = JSON.stringify(at.events.slice(-8));
  expect(error.message, `the last events at the front door: ${lastEvents}`).toMatch(/server ended (during|while)/);
  expect(shown, `${prompt}: ${error.message}`).toBeLessThanOrEqual(1);
}

it(`a prompt sent through the front door while the server dies begins at most one turn (${KILLS} kills)`, async () => {
  const client = await at.client("ann");
  const sessionId = unused("door");
  const session = await client.createSession({ onPermissionRequest: approveAll, sessionId });
  await session.sendAndWait("first", 30_000);
  let cut = 0;
  for (let kill = 0; kill < KILLS; kill++) {
    const prompt = `${sessionId}-${kill}.`;
    const outcome = await around(async () => (await session.sendAndWait(prompt, 30_000))?.data.content);
    if (outcome.error !== undefined) cut++;
    expectOnce(prompt, outcome);
    await session.sendAndWait(`after-${kill}.`, 30_000);
  }
  console.log(`${cut} of ${KILLS} turns were cut`);
});

it(`a prompt sent by the library while the server dies begins at most one turn (${KILLS} kills)`, async () => {
  const sessionId = unused("library");
  const session = await at.fleet.sessions.create({ user: "ann", sessionId });
  await session.sendAndWait("first");
  let cut = 0;
  for (let kill = 0; kill < KILLS; kill++) {
    const prompt = `${sessionId}-${kill}.`;
    const outcome = await around(async () => (await session.sendAndWait(prompt))?.data.content);
    if (outcome.error !== undefined) cut++;
    expectOnce(prompt, outcome);
    await session.sendAndWait(`after-${kill}.`);
  }
  console.log(`${cut} of ${KILLS} turns were cut`);
  await at.fleet.sessions.leave(session);
});

it("a prompt at the front door is answered even if the user's server dies before it reads the prompt", async () => {
  const [user, sessionId] = [unused("ben"), unused("unread")];
  const client = await at.client(user);
  const prompt = `${sessionId}.`;
  const session = await client.createSession({ onPermissionRequest: approveAll, sessionId });
  await session.sendAndWait("first", 30_000);
  const { pid } = await at.serverOf(user);
  process.kill(pid, "SIGSTOP");
  const reply = session.sendAndWait(prompt, 30_000);
  await eventually("the prompt at the front door", () => at.door.turns === 1);
  process.kill(pid, "SIGKILL");
  expect((await reply)?.data.content).toBe(`you said: ${prompt}`);
  expect(at.model.shown(prompt)).toBe(1);
});

it("if the server dies during a turn, the prompt at the front door ends with an error and is not sent again", async () => {
  const client = await at.client("ann");
  const sessionId = unused("begun");
  const prompt = `!hold ${sessionId}.`;
  const session = await client.createSession({ onPermissionRequest: approveAll, sessionId });
  await session.sendAndWait("first", 30_000);
  const reply = session.sendAndWait(prompt, 30_000);
  const failed = expect(reply).rejects.toThrow(/ended during the turn/);
  await eventually("the model", () => at.model.shown(prompt) === 1);
  process.kill((await at.serverOf("ann")).pid, "SIGKILL");
  await failed;
  expect((await session.sendAndWait("next.", 30_000))?.data.content).toBe("you said: next.");
  expect(at.model.shown(prompt)).toBe(1);
});
