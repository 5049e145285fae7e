import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { seededRandom } from "../fixtures/random.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";
import { expectExactlyOnce, total, Worker } from "../fixtures/store/store-workers.js";

const SOAK = process.env.SOAK !== undefined;
const WORKERS = SOAK ? 16 : 8;
/** Increments per worker: half of them in the registry, and half in one session record that all workers share. */
const QUOTA = SOAK ? 626 : 30;
/** In a soak run, some suspensions take half as long as other writers wait. */
const LONG_STOP_MS = 2_500;
const PAUSE_MS = SOAK ? 150 : 100;
/** The minimum number of increments between two faults. Without a minimum, a slow machine would make no progress. */
const STEPS = 2;

const program = bundleFixture("store-counter");

it(`${WORKERS * QUOTA} increments in the file store count exactly once if workers die or stall`, async () => {
  const random = seededRandom("store torture");
  const root = await temporaryRoot();
  const ackFolder = join(root, "..", "acks");
  await mkdir(ackFolder);
  const store = openStore("file", root);
  await store.sessions.create(sessionRecord("shared"));
  const options = { program, url: "file", root, ackFolder, quota: QUOTA / 2 };
  const workers = Array.from({ length: WORKERS }, (_, index) => new Worker(options, index));
  onTestFinished(() => workers.forEach((worker) => void worker.signal("SIGKILL")));

  const faults = { kills: 0, stops: 0, longStops: 0 };
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
    if (random() < 0.5) {
      victim?.signal("SIGKILL");
      faults.kills++;
    } else {
      const long = SOAK && random() < 0.1;
      victim?.signal("SIGSTOP");
      setTimeout(() => victim?.signal("SIGCONT"), long ? LONG_STOP_MS : random() * 400);
      faults[long ? "longStops" : "stops"]++;
    }
  }
  console.log(`store torture: ${JSON.stringify(faults)}`);

  await expectExactlyOnce(store, ackFolder, (WORKERS * QUOTA) / 2);
  expect(store.takeWarnings()).toEqual([]);
  await store.registry.update((draft) => void delete draft.servers.w0);
  await store.sweep();
  expect((await readdir(root)).filter((name) => name.startsWith("."))).toEqual([]);
});
