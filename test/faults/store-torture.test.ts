import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { type FileStore, openFileStore } from "../../src/store/file/file-store.js";
import { bundleFixture } from "../fixtures/store-bundle.js";
import { parseCounts } from "../fixtures/store-counts.js";
import { seededRandom } from "../fixtures/store-random.js";
import { sessionRecord } from "../fixtures/store-records.js";
import { temporaryRoot } from "../fixtures/store-root.js";

const WORKERS = 16;
const SOAK = process.env.SOAK !== undefined;
/** Increments of one worker, half in the registry and half in one session record that all of them share. */
const QUOTA = SOAK ? 626 : 30;
/** Proper-lockfile takes a lock for stale after 2 to 3 s: some stops outlast it, where there is time for that. */
const LONG_STOP_MS = 4_000;
const PAUSE_MS = SOAK ? 150 : 100;
const KINDS = ["registry", "session"] as const;

const program = bundleFixture("store-counter");

/** One of the workers: a program that is started again, as a new incarnation, until its quota is reached. */
class Worker {
  readonly #root: string;
  readonly #ackFolder: string;
  readonly #index: number;
  #incarnation = 0;
  #child: ChildProcess | undefined;
  done = false;
  failure: string | undefined;

  constructor(root: string, ackFolder: string, index: number) {
    this.#root = root;
    this.#ackFolder = ackFolder;
    this.#index = index;
  }

  async start(): Promise<void> {
    const acked = await readAcks(this.#ackFolder, `w${this.#index}.`);
    const left = KINDS.map((kind) => {
      const sum = [...acked.values()].reduce((total, counts) => total + counts[kind], 0);
      return String(QUOTA / 2 - sum);
    });
    const incarnation = String(this.#incarnation++);
    const name = `w${this.#index}`;
    const argv = [program, this.#root, name, incarnation, ...left, join(this.#ackFolder, `${name}.${incarnation}`)];
    const child = spawn(process.execPath, argv, { stdio: ["ignore", "ignore", "pipe"] });
    this.#child = child;
    let stderr = "";
    child.stderr.on("data", (chunk) => {
      stderr += chunk;
    });
    child.on("close", (code) => {
      this.#child = undefined;
      if (code === 0) this.done = true;
      else if (code !== null) this.failure = `${name}.${incarnation} exited ${code}: ${stderr}`;
    });
  }

  get idle(): boolean {
    return this.#child === undefined && !this.done;
  }

  signal(name: NodeJS.Signals): void {
    this.#child?.kill(name);
  }
}

/** By incarnation, how many updates were acknowledged. */
async function readAcks(folder: string, prefix: string): Promise<Map<string, Record<(typeof KINDS)[number], number>>> {
  const names = (await readdir(folder)).filter((name) => name.startsWith(prefix));
  const acks = new Map<string, Record<(typeof KINDS)[number], number>>();
  for (const name of names) {
    const lines = (await readFile(join(folder, name), "utf8")).split("\n");
    const count = (kind: string) => lines.filter((line) => line.startsWith(`${kind} `)).length;
    acks.set(name, { registry: count("registry"), session: count("session") });
  }
  return acks;
}

async function recorded(store: FileStore) {
  const { servers } = await store.readRegistry();
  const registry = Object.values(servers).map(({ failure }) => parseCounts(failure));
  const session = [parseCounts((await store.readSession("shared"))?.purpose ?? null)];
  return { registry, session };
}

it(`counts ${WORKERS * QUOTA} increments exactly once, whoever is killed or suspended`, async () => {
  const random = seededRandom("store torture");
  const root = await temporaryRoot();
  const ackFolder = join(root, "..", "acks");
  await mkdir(ackFolder);
  const store = openFileStore(root);
  await store.createSession(sessionRecord("shared"));
  const workers = Array.from({ length: WORKERS }, (_, index) => new Worker(root, ackFolder, index));
  onTestFinished(() => workers.forEach((worker) => void worker.signal("SIGKILL")));

  const faults = { kills: 0, stops: 0, longStops: 0 };
  let seen = 0;
  while (!workers.every(({ done }) => done)) {
    for (const worker of workers) if (worker.idle) await worker.start();
    await sleep(random() * PAUSE_MS);
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
    expect(workers.map(({ failure }) => failure).filter(Boolean)).toEqual([]);
    // A reader never fails, and never sees the past.
    const now = total(await recorded(store));
    expect(now).toBeGreaterThanOrEqual(seen);
    seen = now;
  }
  console.log(`store torture: ${JSON.stringify(faults)}`);

  const counts = await recorded(store);
  const acks = await readAcks(ackFolder, "w");
  for (const kind of KINDS) {
    expect(counts[kind].flatMap(({ anomalies }) => anomalies)).toEqual([]);
    const next = Object.assign({}, ...counts[kind].map((entry) => entry.next)) as Record<string, number>;
    for (const [incarnation, acked] of acks) {
      // The one update that was under way when its process died may be there or not.
      expect([acked[kind], acked[kind] + 1], `${kind} of ${incarnation}`).toContain(next[incarnation] ?? 0);
    }
    expect([...acks.values()].reduce((sum, acked) => sum + acked[kind], 0)).toBe((WORKERS * QUOTA) / 2);
  }
  expect(store.takeWarnings()).toEqual([]);
  await store.updateRegistry((draft) => void delete draft.servers.w0);
  expect((await readdir(join(root, "registry"))).filter((name) => name.startsWith("."))).toEqual([]);
  expect((await readdir(root)).filter((name) => name.startsWith("."))).toEqual([]);
});

function total(counts: Awaited<ReturnType<typeof recorded>>): number {
  const numbers = [...counts.registry, ...counts.session].flatMap(({ next }) => Object.values(next));
  return numbers.reduce((sum, number) => sum + number, 0);
}
