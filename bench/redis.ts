/**
 * The Redis store under 50 clients, each with a connection of its own: how long one registry operation takes, and what an
 * operation costs beside 100,000 sessions against 1,000.
 * Run: npx tsx bench/redis.ts (needs redis-server)
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { openStore } from "../src/store/open.js";
import type { Store } from "../src/store/store.js";
import { RedisServer } from "../test/fixtures/redis-server.js";
import { serverRecord, sessionRecord } from "../test/fixtures/store-records.js";
import { claim, compare, printMachine, ratio } from "./measure.js";

const CLIENTS = 50;
const SERVERS = 50;
const LIMIT_MS = 10;
const SIZES = [1_000, 100_000];
const OPERATIONS = 50;

printMachine();
const folder = await mkdtemp(join(tmpdir(), "copilotfleet-bench-"));
const redis = await RedisServer.start(["--appendonly", "yes", "--save", ""]);
let stores = 0;

function open(url: string): Store {
  return openStore(url, join(folder, String(stores++)));
}

try {
  await registryOperations();
  await costBesideSessions();
} finally {
  await redis.end();
  await rm(folder, { recursive: true, force: true });
}

/**
 * Each client goes on as a command does: it reads the registry, changes the record of its server, and has other work to do
 * for a while (starting a server takes tens of milliseconds, a turn more).
 */
async function registryOperations(): Promise<void> {
  const url = redis.url();
  const first = open(url);
  await first.updateRegistry((draft) => {
    for (let index = 0; index < SERVERS; index++) draft.servers[`s${index}`] = serverRecord(`s${index}`);
  });
  const clients = Array.from({ length: CLIENTS }, () => open(url));
  await Promise.all(clients.map((client) => client.readRegistry()));
  for (const pauseMs of [100, 50, 0]) {
    const reads: number[] = [];
    const updates: number[] = [];
    const start = performance.now();
    const end = start + 5_000;
    await Promise.all(
      clients.map(async (client, index) => {
        await sleep(Math.random() * pauseMs);
        while (performance.now() < end) {
          reads.push(await timed(() => client.readRegistry()));
          updates.push(
            await timed(() =>
              client.updateRegistry((draft) => {
                const record = draft.servers[`s${index}`];
                if (record !== undefined) record.lastPort = (record.lastPort ?? 0) + 1;
              }),
            ),
          );
          await sleep(Math.random() * 2 * pauseMs);
        }
      }),
    );
    const perSecond = ((reads.length + updates.length) / (performance.now() - start)) * 1_000;
    const what = pauseMs === 0 ? "no pause" : `pauses of ${pauseMs} ms`;
    console.log(`${CLIENTS} clients, ${what}: ${perSecond.toFixed(0)} operations a second`);
    for (const [name, times] of [
      ["read", reads],
      ["update", updates],
    ] as const) {
      const sorted = times.toSorted((a, b) => a - b);
      const at = (share: number) => sorted[Math.floor(sorted.length * share)] ?? Number.NaN;
      console.log(
        `  ${name.padEnd(8)} p50 ${at(0.5).toFixed(2)} ms   p99 ${at(0.99).toFixed(2)} ms   max ${at(0.9999).toFixed(2)} ms   n ${sorted.length}`,
      );
      if (pauseMs === 100) claim(`${name}: p99 in ms`, at(0.99), LIMIT_MS);
    }
  }
  await Promise.all([first, ...clients].map((client) => client.close()));
}

async function costBesideSessions(): Promise<void> {
  const sized = new Map<number, Store>();
  for (const size of SIZES) {
    const store = open(redis.url());
    sized.set(size, store);
    for (let at = 0; at < size; at += 500) {
      await Promise.all(
        Array.from({ length: 500 }, (_, index) => store.createSession(sessionRecord(`s${at + index}`))),
      );
    }
  }
  let next = 0;
  const operations: Record<string, (store: Store) => Promise<unknown>> = {
    "create a record": (store) => store.createSession(sessionRecord(`new-${next++}`)),
    "read a record": (store) => store.readSession(`s${next++ % 1_000}`),
    "touch a record": (store) => store.updateSession(`s${next++ % 1_000}`, (draft) => void draft.turns++),
    "delete a record": (store) => store.deleteSession(`new-${next++ % 1_000}`),
    "take and release a lease": async (store) => {
      const [sessionId, token] = [`s${next % 1_000}`, `token-${next++}`];
      await store.acquireLease({ sessionId, holder: "bench", token, ttlMs: 60_000, placeMs: 3_000 });
      await store.releaseLease(sessionId, token);
    },
    "read the registry": (store) => store.readRegistry(),
    "change the registry": (store) => store.updateRegistry((draft) => Object.assign(draft, { placed: next++ }).placed),
  };
  for (const [name, operation] of Object.entries(operations)) {
    const contenders = [...sized].map(([size, store]) => ({
      name: `${name}, ${size} sessions`,
      round: async () => {
        const start = performance.now();
        for (let index = 0; index < OPERATIONS; index++) await operation(store);
        return (performance.now() - start) / OPERATIONS;
      },
    }));
    const medians = await compare(25, contenders);
    const [few = "", many = ""] = contenders.map((contender) => contender.name);
    claim(`${name}: 100,000 to 1,000 sessions`, ratio(medians, many, few), 1.5);
  }
  await Promise.all([...sized.values()].map((store) => store.close()));
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}
