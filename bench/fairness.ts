import { mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Fleet } from "../src/fleet/fleet.js";
import { median } from "./measure.js";

/*
 * Measures how long 100 users wait for their turns at the cap of a shared server (`session.maxActive`), with and
 * without another user who has 100 prompts waiting. Run: npx tsx bench/fairness.ts
 *
 * Both measurements run several times in one process, one after the other. Required: with the other user, the median
 * wait of the 100 users is at most 1.5 times as long as without.
 */

const USERS = Number(process.env.USERS ?? 100);
const PROMPTS = Number(process.env.PROMPTS ?? 100);
const CAP = Number(process.env.CAP ?? 8);
const ROUNDS = Number(process.env.ROUNDS ?? 2);
const REQUIRED = 1.5;

async function main(): Promise<void> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-fairness-")));
  const fleet = await Fleet.open({
    env: { ...process.env, COPILOTFLEET_HOME: join(folder, "state"), COPILOT_OFFLINE: "true" },
    cwd: folder,
    config: {
      isolation: "shared",
      ports: { from: 7800, to: 7899 },
      provider: { type: "echo" },
      session: { maxActive: CAP },
      health: { interval: "60s", timeout: "30s" },
      recycle: { maxMemory: null },
    },
  });
  try {
    const users = Array.from({ length: USERS }, (_, index) => `user-${index}`);
    const greedy = Array.from({ length: PROMPTS }, (_, index) => `greedy-${index}`);
    for (const user of users) await create(fleet, user, `of-${user}`);
    for (const id of greedy) await create(fleet, "greedy", id);
    const waits: { alone: number[]; beside: number[] } = { alone: [], beside: [] };
    for (let round = 0; round < ROUNDS; round++) {
      waits.alone.push(...(await turnsOf(fleet, users)));
      const others = greedy.map(async (id) => await send(fleet, "greedy", id));
      waits.beside.push(...(await turnsOf(fleet, users)));
      await Promise.all(others);
    }
    const [alone, beside] = [median(waits.alone), median(waits.beside)];
    const ratio = beside / alone;
    console.log(`${USERS} users at a cap of ${CAP} sessions, median wait for the reply:`);
    console.log(`  without the user with ${PROMPTS} waiting prompts: ${alone.toFixed(0)} ms`);
    console.log(`  beside this user: ${beside.toFixed(0)} ms, ${ratio.toFixed(2)} times as long (at most ${REQUIRED})`);
    if (ratio > REQUIRED) process.exitCode = 1;
  } finally {
    const servers = await fleet.servers.list();
    await fleet.servers.stop(
      servers.map(({ id }) => id),
      { force: true },
    );
    await fleet.close();
    await rm(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
  }
}

async function create(fleet: Fleet, user: string, sessionId: string): Promise<void> {
  await fleet.sessions.leave(await fleet.sessions.create({ user, sessionId }));
}

async function send(fleet: Fleet, user: string, id: string): Promise<number> {
  const begun = performance.now();
  await fleet.sessions.use(id, "hello", { user, wait: "10m" });
  return performance.now() - begun;
}

async function turnsOf(fleet: Fleet, users: readonly string[]): Promise<number[]> {
  return await Promise.all(users.map(async (user) => await send(fleet, user, `of-${user}`)));
}

await main();
