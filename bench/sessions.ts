/**
 * Compares the costs of one session when 10,000 sessions are recorded with the costs when 100 are: creating the record,
 * updating it, and acquiring and releasing the lease. Then compares complete calls of `create`, on a server whose home
 * contains a folder for each of these sessions.
 *
 * Run: npx tsx bench/sessions.ts
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { SessionRecord } from "../src/base/session.js";
import { Fleet } from "../src/index.js";
import type { Store } from "../src/store/store.js";
import { openStore } from "../src/store/store.js";
import { claim, compare, printMachine, ratio } from "./measure.js";

const SIZES = [100, 10_000];
const OPERATIONS = 20;

printMachine();
const folder = await mkdtemp(join(tmpdir(), "copilotfleet-bench-"));
const stores = new Map<number, Store>();
const fleets = new Map<number, Fleet>();
for (const size of SIZES) {
  const root = join(folder, String(size));
  const store = openStore("file", root);
  stores.set(size, store);
  for (let index = 0; index < size; index++) await store.sessions.create(record(`s${index}`));
  const fleet = await Fleet.open({
    env: {
      ...process.env,
      COPILOTFLEET_HOME: root,
      COPILOTFLEET_PROVIDER_TYPE: "echo",
      COPILOTFLEET_LIMITS_DEFAULT_SESSIONS: "null",
      COPILOT_OFFLINE: "true",
      COPILOTFLEET_PORTS_FROM: "15000",
      COPILOTFLEET_PORTS_TO: "15999",
    },
  });
  fleets.set(size, fleet);
  const { server } = await fleet.servers.spawn("bench");
  for (let index = 0; index < size; index++) {
    await mkdir(join(server.home, "session-state", `s${index}`, "checkpoints"), { recursive: true });
  }
}

let next = 0;
const operations: Record<string, (store: Store, fleet: Fleet) => Promise<unknown>> = {
  "create the record": async (store) => await store.sessions.create(record(`new-${next++}`)),
  "touch the record": async (store) =>
    await store.sessions.update(`s${next++ % 100}`, (draft) => {
      draft.lastUsedAt = new Date().toISOString();
    }),
  "take and release a lease": async (store) => {
    const [sessionId, token] = [`s${next % 100}`, `token-${next++}`];
    await store.leases.acquire({ sessionId, holder: "bench", token, ttlMs: 60_000, placeMs: 3_000 });
    await store.leases.release(sessionId, token);
  },
  "sessions.create and leave": async (_, fleet) => {
    await fleet.sessions.leave(await fleet.sessions.create({ user: "bench", sessionId: `whole-${next++}` }));
  },
};

try {
  for (const [name, operation] of Object.entries(operations)) {
    const times = name.startsWith("sessions.create") ? 2 : OPERATIONS;
    const contenders = SIZES.map((size) => ({
      name: `${name}, ${size} sessions`,
      round: async () => {
        const [store, fleet] = [stores.get(size), fleets.get(size)];
        if (store === undefined || fleet === undefined) throw new Error("not opened");
        const start = performance.now();
        for (let index = 0; index < times; index++) await operation(store, fleet);
        return (performance.now() - start) / times;
      },
    }));
    const medians = await compare(15, contenders);
    const [few = "", many = ""] = contenders.map((contender) => contender.name);
    claim(`${name}: 10,000 to 100 sessions`, ratio(medians, many, few), 1.5);
  }
} finally {
  for (const fleet of fleets.values()) {
    await fleet.servers.stop([(await fleet.servers.ofUser("bench")).id], { force: true });
    await fleet.close();
  }
  await rm(folder, { recursive: true, force: true });
}

function record(id: string): SessionRecord {
  const now = new Date().toISOString();
  return {
    id,
    owner: "bench",
    purpose: null,
    kind: "private",
    members: [],
    persistence: "persistent",
    serverId: "bench",
    model: null,
    createdAt: now,
    lastUsedAt: now,
    ttlMs: null,
    usedBy: null,
    turns: 0,
  };
}
