import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { seededRandom } from "../fixtures/random.js";
import { CuttingProxy } from "../fixtures/store/cutting-proxy.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { keyedRoot } from "../fixtures/store/store-root.js";
import { expectExactlyOnce, total, Worker } from "../fixtures/store/store-workers.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`the torture of the Redis store is skipped: ${problem}`);

const SOAK = process.env.SOAK !== undefined;
const WORKERS = SOAK ? 8 : 4;
/** Increments per worker: half of them in the registry, and half in one session record that all workers share. */
const QUOTA = SOAK ? 2_000 : 60;
const PAUSE_MS = SOAK ? 60 : 40;
/** The minimum number of increments between two faults. Without a minimum, a slow machine would make no progress. */
const STEPS = 2;

const program = problem === undefined ? bundleFixture("store-counter") : "";

it.skipIf(problem !== undefined)(
  `${WORKERS * QUOTA} increments in Redis count exactly once despite cut connections, kills and suspensions`,
  async () => {
    const random = seededRandom("redis torture");
    const redis = await RedisServer.start(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
    onTestFinished(() => redis.end());
    const proxy = await CuttingProxy.start(redis.port);
    onTestFinished(() => proxy.end());
    const root = await keyedRoot();
    const ackFolder = join(root, "..", "acks");
    await mkdir(ackFolder, { recursive: true });
    const direct = redis.url("f");
    const store = openStore(direct, root);
    onTestFinished(() => store.close());
    await store.sessions.create(sessionRecord("shared"));

    // The state folder has a file for each database address, with the epoch seen there. The workers use the proxy's
    // address, so they do not share a file with `store`.
    const url = direct.replace(String(redis.port), String(proxy.port));
    const options = { program, url, root, ackFolder, quota: QUOTA / 2 };
    const workers = Array.from({ length: WORKERS }, (_, index) => new Worker(options, index));
    onTestFinished(() => workers.forEach((worker) => void worker.signal("SIGKILL")));

    const faults = { kills: 0, stops: 0, cuts: 0, lostAnswers: 0, redisStops: 0, redisKills: 0 };
    let seen = 0;
    let atAccident = 0;
    while (!workers.every(({ done }) => done)) {
      for (const worker of workers) if (worker.idle) await worker.start();
      await sleep(random() * PAUSE_MS);
      expect(workers.map(({ failure }) => failure).filter(Boolean)).toEqual([]);
      // A reader never fails and never sees an older state.
      const now = await total(store);
      expect(now).toBeGreaterThanOrEqual(seen);
      seen = now;
      if (now < atAccident + STEPS) continue;
      atAccident = now;
      const victim = workers[Math.floor(random() * WORKERS)];
      const which = random();
      if (which < 0.15) {
        victim?.signal("SIGKILL");
        faults.kills++;
      } else if (which < 0.3) {
        victim?.signal("SIGSTOP");
        setTimeout(() => victim?.signal("SIGCONT"), random() * 300);
        faults.stops++;
      } else if (which < 0.5) {
        proxy.cutAll();
        faults.cuts++;
      } else if (which < 0.95) {
        proxy.loseAnswerTo(/:commit:/);
      } else if (which < 0.98) {
        redis.signal("SIGSTOP");
        await sleep(random() * 300);
        redis.signal("SIGCONT");
        faults.redisStops++;
      } else {
        await redis.kill();
        await redis.run();
        faults.redisKills++;
      }
    }
    faults.lostAnswers = proxy.cuts;
    console.log(`redis torture: ${JSON.stringify(faults)}`);

    expect(faults.lostAnswers).toBeGreaterThan(0);
    await expectExactlyOnce(store, ackFolder, (WORKERS * QUOTA) / 2);
    expect(store.takeWarnings()).toEqual([]);
  },
);
