import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openStore, type Store } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { parseCounts, stringifyCounts } from "../fixtures/store/store-counts.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { attach, straceProblem } from "../fixtures/store/store-strace.js";

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

interface Outcome {
  /** The line that the committer printed; undefined if it died. */
  answer: string | undefined;
  trace: string;
  /** How often the update is stored. */
  times: number;
}

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
  let open: Store | undefined;
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
   * Before "create", there is no state folder. So the killed process is the only one, and the next one has to recover
   * the database. Before the other updates, there is a fleet that another process has open.
   */
  async function prepare(update: Update): Promise<void> {
    if (update === "create") return await rm(root, { recursive: true, force: true });
    if (open !== undefined) return;
    open = openStore("file", root);
    await open.registry.update((draft) => void Object.assign(draft.servers, { first: serverRecord("first") }));
    await open.sessions.create(sessionRecord("victim"));
  }

  /** Lets the committer make an update under `injection`, while `others` works. */
  async function tamper(
    committer: Committer,
    update: Update,
    injection: string,
    others?: (key: string, finished: () => boolean) => Promise<void>,
  ): Promise<Outcome> {
    const key = `key${number++}`;
    const expressions = [`trace=${CALLS.join(",")}`, `inject=${injection}`];
    const detach = await attach(committer.child.pid ?? 0, log, expressions);
    let finished = false;
    const working = others?.(key, () => finished);
    const answer = await committer.count(key, update);
    finished = true;
    await working;
    return { answer, trace: await detach(answer === undefined ? "ended" : "runs"), times: await timesOf(key, update) };
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
      await atEachCall(update, CALLS, "signal=SIGKILL", async ({ answer, trace, times, at }) => {
        if (answer === "acked") return false;
        expect(trace, at).toContain("+++ killed by SIGKILL +++");
        expect(answer, at).toBeUndefined();
        expect([0, 1], at).toContain(times);
        outcomes[times === 0 ? "old" : "new"]++;
        await openStore("file", root).sweep();
        expect(await scratchNames(), at).toEqual([]);
        return true;
      });
      console.log(`store system calls: ${update} killed ${JSON.stringify(outcomes)}`);
      // Both outcomes must occur. Otherwise the kills did not hit the calls before and after the commit.
      expect(Math.min(outcomes.old, outcomes.new)).toBeGreaterThan(0);
    },
  );

  it.each(Object.keys(UPDATES) as Update[])(
    "%s: an update reports the error of each system call that it needs, and leaves no temp file",
    async (update) => {
      const outcomes: Record<string, number> = {};
      // A local file system does not fail to end a lock.
      const calls = CALLS.filter((call) => call !== "fcntl");
      // The code handles both errors alike.
      for (const error of SOAK ? ["EIO", "ENOSPC"] : ["EIO"]) {
        await atEachCall(update, calls, `error=${error}`, async ({ answer, trace, times, at }) => {
          // Without an error, no call is left. Without an answer, the call was the one that writes it.
          if (!trace.includes("(INJECTED)") || answer === undefined) return false;
          if (answer === "acked") expect(times, at).toBe(1);
          else expect(answer, at).toBe("failed FLEET_STATE_UNWRITABLE");
          expect(times, at).toBeLessThanOrEqual(1);
          expect(await scratchNames(), at).toEqual([]);
          const outcome = `${at} ${answer} ${times}`;
          outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
          return true;
        });
      }
      console.log(`store system calls: ${update} errors ${JSON.stringify(outcomes, null, 1)}`);
    },
  );

  it.each(["registry", "session"] as const)(
    "%s: an update delayed at any system call takes effect once, and loses no update of another writer",
    async (update) => {
      const delay = `delay_enter=${DELAY_MS * 1_000}`;
      await atEachCall(
        update,
        CALLS,
        delay,
        async ({ answer, trace, times, at }) => {
          expect({ answer, times }, at).toEqual({ answer: "acked", times: 1 });
          return trace.includes("(DELAYED)");
        },
        countOthers,
      );
    },
  );

  /**
   * Lets a committer make an update that is tampered with at the first occurrence of a call, then at the second, and so
   * on, until `judge` returns false. How often an update makes a call depends on what the update before it left.
   */
  async function atEachCall(
    update: Update,
    calls: readonly string[],
    injection: string,
    judge: (outcome: Outcome & { at: string }) => Promise<boolean>,
    others?: (key: string, finished: () => boolean) => Promise<void>,
  ): Promise<void> {
    for (const call of calls) {
      for (let when = 1; ; when++) {
        await prepare(update);
        const committer = await start();
        const outcome = await tamper(committer, update, `${call}:${injection}:when=${when}`, others);
        const at = `${call} #${when} ${injection}: ${outcome.answer}`;
        committer.child.kill("SIGKILL");
        await committer.exited;
        if (await judge({ ...outcome, at })) continue;
        if (UPDATES[update].includes(call)) expect(when, at).toBeGreaterThan(1);
        break;
      }
    }
  }

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
      // The process that strace slows down needs a chance to commit between two updates.
      await sleep(5);
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
