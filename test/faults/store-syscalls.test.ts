import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type FleetStore, openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { parseCounts, stringifyCounts } from "../fixtures/store/store-counts.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { attach, countCalls, straceProblem } from "../fixtures/store/store-strace.js";

/** Every system call of an update that changes a file or a lock, or that opens a file. */
const CALLS = "mkdir openat write pwrite64 ftruncate fsync rename unlink fcntl".split(" ");
const SOAK = process.env.SOAK !== undefined;
const DELAY_MS = SOAK ? 400 : 60;

/** The updates, as the program names them, and the calls that each needs in any case. */
const UPDATES = {
  registry: ["openat", "write", "fsync", "rename", "fcntl"],
  session: ["openat", "pwrite64", "fsync", "fcntl"],
  create: ["mkdir", "openat", "pwrite64", "fsync", "fcntl"],
};
type Update = keyof typeof UPDATES;

const problem = straceProblem();
if (problem !== undefined) console.log(`store system calls: skipped, since ${problem}`);
const program = problem === undefined ? bundleFixture("store-committer") : "";

/** A process that makes one update for each line that it receives. */
class Committer {
  readonly child: ChildProcess;
  readonly exited: Promise<unknown>;
  readonly #lines: AsyncIterator<string>;

  constructor(root: string) {
    // Use one thread for the file system, because strace counts the occurrences of a call per thread.
    const env = { ...process.env, UV_THREADPOOL_SIZE: "1" };
    const child = spawn(process.execPath, [program, root], { stdio: ["pipe", "pipe", "inherit"], env });
    this.child = child;
    this.exited = once(child, "exit");
    child.stdin.on("error", () => "it was killed");
    this.#lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  }

  /** The next line that the process prints, or undefined if the process dies first. */
  async answer(): Promise<string | undefined> {
    const { value, done } = await this.#lines.next();
    return done ? undefined : value;
  }

  async count(key: string, update: Update): Promise<string | undefined> {
    this.child.stdin?.write(`${key} ${update}\n`);
    return this.answer();
  }
}

describe.skipIf(problem !== undefined)("an update whose system calls are tampered with", () => {
  let root: string;
  let log: string;
  const started: Committer[] = [];
  let open: FleetStore | undefined;
  let number = 0;

  beforeEach(async () => {
    root = join(await mkdtemp(join(tmpdir(), "copilotfleet-syscalls-")), "state");
    log = join(root, "..", "strace.log");
  });

  afterEach(async () => {
    for (const { child, exited } of started.splice(0)) {
      child.kill("SIGKILL");
      await exited;
    }
    await open?.close();
    open = undefined;
    await rm(join(root, ".."), { recursive: true, force: true });
  });

  async function start(): Promise<Committer> {
    const committer = new Committer(root);
    started.push(committer);
    expect(await committer.answer()).toBe("ready");
    return committer;
  }

  /**
   * Before "create", there is no state folder. So the killed process is the only one, and the next one has to recover the
   * database. Before the other updates, there is a fleet that another process has open.
   */
  async function prepare(update: Update): Promise<void> {
    if (update === "create") return await rm(root, { recursive: true, force: true });
    if (open !== undefined) return;
    open = openStore("file", root);
    await open.registry.update((draft) => void Object.assign(draft.servers, { first: serverRecord("first") }));
    await open.sessions.create(sessionRecord("victim"));
  }

  /** How often an update makes each call, as pairs of the call and the number of its occurrence. */
  async function occurrences(update: Update): Promise<[call: string, when: number][]> {
    await prepare(update);
    const committer = await start();
    const detach = await attach(committer.child.pid ?? 0, log, [`trace=${CALLS.join(",")}`]);
    expect(await committer.count("baseline", update)).toBe("acked");
    const calls = countCalls(await detach());
    console.log(`store system calls: ${update} ${JSON.stringify(Object.fromEntries(calls))}`);
    expect([...calls.keys()]).toEqual(expect.arrayContaining(UPDATES[update]));
    return [...calls].flatMap(([call, count]) =>
      Array.from({ length: count }, (_, index): [string, number] => [call, index + 1]),
    );
  }

  /** Lets the committer make an update under `injection`, while `others` works. */
  async function tamper<T>(
    committer: Committer,
    update: Update,
    injection: string,
    others?: (key: string, finished: () => boolean) => Promise<T>,
  ) {
    const key = `key${number++}`;
    const expressions = [`trace=${CALLS.join(",")}`, `inject=${injection}`];
    const detach = await attach(committer.child.pid ?? 0, log, expressions);
    let finished = false;
    const working = others?.(key, () => finished);
    const answer = await committer.count(key, update);
    finished = true;
    await working;
    return { answer, trace: await detach(), times: await timesOf(key, update) };
  }

  /** How often the update with this key is stored, as a new process sees it. It also makes updates of its own. */
  async function timesOf(key: string, update: Update): Promise<number> {
    const store = openStore("file", root);
    const { servers } = await store.registry.read();
    const session = await store.sessions.read("victim");
    const counts = parseCounts((update === "registry" ? servers.victim?.failure : session?.purpose) ?? null);
    // Nothing else has changed.
    if (update !== "create") expect(servers.first).toEqual(serverRecord("first"));
    const next = serverRecord("next", { cwd: `/${key}` });
    await store.registry.update((draft) => void Object.assign(draft.servers, { next }));
    await store.sessions.create(sessionRecord(`after-${key}`));
    expect((await store.registry.read()).servers.next).toEqual(next);
    expect((await store.sessions.ids("alice")).includes(`after-${key}`)).toBe(true);
    expect(await store.damage()).toEqual([]);
    expect(store.takeWarnings()).toEqual([]);
    await store.close();
    return counts.next[key] ?? 0;
  }

  it.each(Object.keys(UPDATES) as Update[])(
    "%s: an update killed at any system call is stored completely or not at all, and the next process goes on",
    async (update) => {
      const outcomes = { old: 0, new: 0 };
      for (const [call, when] of await occurrences(update)) {
        await prepare(update);
        const committer = await start();
        const { answer, trace, times } = await tamper(committer, update, `${call}:signal=SIGKILL:when=${when}`);
        const at = `${call} #${when}`;
        expect(trace, at).toContain("+++ killed by SIGKILL +++");
        expect(answer, at).toBeUndefined();
        expect([0, 1], at).toContain(times);
        outcomes[times === 0 ? "old" : "new"]++;
        await openStore("file", root).sweep();
        expect(await scratchNames(), at).toEqual([]);
      }
      console.log(`store system calls: ${update} killed ${JSON.stringify(outcomes)}`);
      // Both outcomes must occur. Otherwise the kills did not hit the calls before and after the commit.
      expect(Math.min(outcomes.old, outcomes.new)).toBeGreaterThan(0);
    },
  );

  it.each(Object.keys(UPDATES) as Update[])(
    "%s: an update reports the error of each system call that it needs, and leaves no temp file",
    async (update) => {
      const outcomes: Record<string, number> = {};
      const all = await occurrences(update);
      const answers = all.filter(([call]) => call === "write").length;
      // The code handles both errors alike.
      for (const error of SOAK ? ["EIO", "ENOSPC"] : ["EIO"]) {
        for (const [call, when] of all) {
          // The last write is the answer of the program.
          if (call === "write" && when === answers) continue;
          await prepare(update);
          const committer = await start();
          const { answer, trace, times } = await tamper(committer, update, `${call}:error=${error}:when=${when}`);
          const at = `${call} #${when} ${error}: ${answer}`;
          expect(trace, at).toContain("(INJECTED)");
          if (answer === "acked") expect(times, at).toBe(1);
          else expect(answer, at).toBe("failed FLEET_STATE_UNWRITABLE");
          expect(times, at).toBeLessThanOrEqual(1);
          expect(await scratchNames(), at).toEqual([]);
          const outcome = `${call} #${when} ${answer} ${times}`;
          outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
          committer.child.kill("SIGKILL");
          await committer.exited;
        }
      }
      console.log(`store system calls: ${update} errors ${JSON.stringify(outcomes, null, 1)}`);
    },
  );

  it.each(["registry", "session"] as const)(
    "%s: an update delayed at any system call takes effect once, and loses no update of another writer",
    async (update) => {
      for (const [call, when] of await occurrences(update)) {
        const committer = await start();
        const at = `${call} #${when}`;
        const delay = `${call}:delay_enter=${DELAY_MS * 1_000}:when=${when}`;
        const { answer, trace, times } = await tamper(committer, update, delay, countOthers);
        expect({ answer, times }, at).toEqual({ answer: "acked", times: 1 });
        expect(trace, at).toContain("(DELAYED)");
        committer.child.kill("SIGKILL");
        await committer.exited;
      }
    },
  );

  /** Makes updates, one after another, until `finished`, and expects that none is lost. */
  async function countOthers(key: string, finished: () => boolean): Promise<void> {
    const store = openStore("file", root);
    let acked = 0;
    while (!finished()) {
      const counts = stringifyCounts({ next: { [key]: acked + 1 }, anomalies: [] });
      await store.registry.update((draft) => {
        expect(parseCounts(draft.servers.other?.failure ?? null).next[key] ?? 0).toBe(acked);
        draft.servers.other = serverRecord("other", { failure: counts });
      });
      await store.sessions.update("victim", (draft) => {
        expect(draft.turns).toBe(acked);
        draft.turns = acked + 1;
      });
      acked++;
    }
    await store.sessions.update("victim", (draft) => {
      expect(draft.turns).toBe(acked);
      draft.turns = 0;
    });
    await store.close();
  }

  async function scratchNames(): Promise<string[]> {
    const names = existsSync(root) ? await readdir(root) : [];
    return names.filter((name) => name.startsWith("."));
  }
});
