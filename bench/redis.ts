/**
 * Measures the Redis store with 50 clients, each with its own connection: the time of a registry operation, and the
 * time of other operations with 100,000 sessions compared to 1,000.
 *
 * Run: npx tsx bench/redis.ts (needs redis-server)
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Redis } from "ioredis";
import type { Store } from "../src/store/store.js";
import { openStore } from "../src/store/store.js";
import { RedisServer } from "../test/fixtures/store/redis-server.js";
import { serverRecord, sessionRecord } from "../test/fixtures/store/store-records.js";
import { withStoreKey } from "../test/fixtures/store/store-root.js";
import { claim, compare, printMachine, ratio } from "./measure.js";

const CLIENTS = 50;
const SERVERS = 50;
const LIMIT_MS = 10;
/**
 * The average pause of a client between two rounds, in milliseconds. It stands for other work: starting a server takes
 * tens of milliseconds, and a turn takes longer.
 */
const CLAIMED_PAUSE_MS = 100;
const SIZES = [1_000, 100_000];
const OPERATIONS = 50;

printMachine();
const folder = await mkdtemp(join(tmpdir(), "copilotfleet-bench-"));
const redis = await RedisServer.start(["--appendonly", "yes", "--save", ""]);
let stores = 0;

function open(url: string): Store {
  return openStore(url, withStoreKey(join(folder, String(stores++))));
}

try {
  await registryOperations();
  await costBesideSessions();
} finally {
  await redis.end();
  await rm(folder, { recursive: true, force: true });
}

/**
 * Each client behaves like a command: it reads the registry, changes the record of its server, and then does other work
 * for a while. For comparison, the Redis client alone sends PING at the same pace. Its time shows the machine's load.
 */
async function registryOperations(): Promise<void> {
  const url = redis.url();
  const first = open(url);
  await first.registry.update((draft) => {
    for (let index = 0; index < SERVERS; index++) draft.servers[`s${index}`] = serverRecord(`s${index}`);
  });
  const clients = Array.from({ length: CLIENTS }, () => open(url));
  const read = async (index: number) => await clients[index]?.registry.read();
  const update = async (index: number) =>
    await clients[index]?.registry.update((draft) => {
      const record = draft.servers[`s${index}`];
      if (record !== undefined) record.lastPort = (record.lastPort ?? 0) + 1;
    });
  await load("warming up", 20, 1_500, { read, update });
  const p99 = await load("50 clients", CLAIMED_PAUSE_MS, 6_000, { read, update });
  for (const name of ["read", "update"]) claim(`${name}: p99 in ms`, p99.get(name) ?? Number.NaN, LIMIT_MS);
  await load("50 clients, for orientation", 50, 4_000, { read, update });
  await load("50 clients, for orientation", 0, 4_000, { read, update });
  await Promise.all([first, ...clients].map((client) => client.close()));

  const bare = clients.map(() => new Redis(redis.port, "127.0.0.1"));
  await load("the client library alone", CLAIMED_PAUSE_MS, 4_000, { ping: async (index) => await bare[index]?.ping() });
  for (const client of bare) client.disconnect();
}

/**
 * Runs all clients at once, each with a pause between its rounds.
 *
 * @returns the 99th percentile of each operation, in milliseconds
 */
async function load(
  what: string,
  pauseMs: number,
  lengthMs: number,
  operations: Record<string, (index: number) => Promise<unknown>>,
): Promise<Map<string, number>> {
  const times = new Map(Object.keys(operations).map((name) => [name, [] as number[]]));
  const start = performance.now();
  await Promise.all(
    Array.from({ length: CLIENTS }, async (_, index) => {
      await sleep(Math.random() * pauseMs);
      while (performance.now() < start + lengthMs) {
        for (const [name, operation] of Object.entries(operations)) {
          const begun = performance.now();
          await operation(index);
          times.get(name)?.push(performance.now() - begun);
        }
        await sleep(Math.random() * 2 * pauseMs);
      }
    }),
  );
  const count = [...times.values()].reduce((sum, list) => sum + list.length, 0);
  const perSecond = (count / (performance.now() - start)) * 1_000;
  console.log(`${what}, pauses of ${pauseMs} ms: ${perSecond.toFixed(0)} operations a second`);
  const p99 = new Map<string, number>();
  for (const [name, list] of times) {
    const sorted = list.toSorted((a, b) => a - b);
    const at = (share: number) => sorted[Math.floor(sorted.length * share)] ?? Number.NaN;
    p99.set(name, at(0.99));
    const [middle, high, top] = [at(0.5), at(0.99), sorted.at(-1) ?? Number.NaN].map((ms) => ms.toFixed(2));
    console.log(`  ${name.padEnd(8)} p50 ${middle} ms   p99 ${high} ms   max ${top} ms   n ${sorted.length}`);
  }
  return p99;
}

async function costBesideSessions(): Promise<void> {
  const sized = new Map<number, Store>();
  for (const size of SIZES) {
    const store = open(redis.url());
    sized.set(size, store);
    for (let at = 0; at < size; at += 500) {
      await Promise.all(
        Array.from({ length: 500 }, (_, index) => store.sessions.create(sessionRecord(`s${at + index}`))),
      );
    }
  }
  let next = 0;
  const operations: Record<string, (store: Store) => Promise<unknown>> = {
    "create a record": (store) => store.sessions.create(sessionRecord(`new-${next++}`)),
    "read a record": (store) => store.sessions.read(`s${next++ % 1_000}`),
    "touch a record": (store) => store.sessions.update(`s${next++ % 1_000}`, (draft) => void draft.turns++),
    "delete a record": (store) => store.sessions.delete(`new-${next++ % 1_000}`),
    "take and release a lease": async (store) => {
      const [sessionId, token] = [`s${next % 1_000}`, `token-${next++}`];
      await store.leases.acquire({ sessionId, holder: "bench", token, ttlMs: 60_000, placeMs: 3_000 });
      await store.leases.release(sessionId, token);
    },
    "read the registry": (store) => store.registry.read(),
    "change the registry": (store) => store.registry.update((draft) => Object.assign(draft, { placed: next++ }).placed),
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
