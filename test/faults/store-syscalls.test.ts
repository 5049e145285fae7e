import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type FileStore, openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { parseCounts, stringifyCounts } from "../fixtures/store/store-counts.js";
import { serverRecord } from "../fixtures/store/store-records.js";
import { attach, countCalls, straceProblem } from "../fixtures/store/store-strace.js";

/** Every system call of a commit that changes something, or that opens a file that is then changed. */
const CALLS = ["mkdir", "openat", "pwrite64", "fsync", "link", "rename", "unlink", "fchmod", "rmdir"];
const ERRORS = ["EIO", "ENOSPC"];
const SOAK = process.env.SOAK !== undefined;
const DELAY_MS = SOAK ? 400 : 60;

const problem = straceProblem();
if (problem !== undefined) console.log(`store system calls: skipped, since ${problem}`);
const program = problem === undefined ? bundleFixture("store-committer") : "";

/** A process that makes one update for each key that it receives. */
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

  async count(key: string): Promise<string | undefined> {
    this.child.stdin?.write(`${key}\n`);
    return this.answer();
  }
}

describe.skipIf(problem !== undefined)("a commit whose system calls are tampered with", () => {
  let root: string;
  let log: string;
  let calls: Map<string, number>;
  const started: Committer[] = [];
  let number = 0;

  beforeAll(async () => {
    root = join(await mkdtemp(join(tmpdir(), "copilotfleet-syscalls-")), "state");
    log = join(root, "..", "strace.log");
    // Commit so many revisions that each later commit also deletes an old revision.
    for (let rev = 0; rev < 20; rev++) await addTo(openStore("file", root), `filler${rev}`);
    const committer = await start();
    const detach = await attach(committer.child.pid ?? 0, log, [`trace=${CALLS.join(",")}`]);
    expect(await committer.count("baseline")).toBe("acked 0");
    calls = countCalls(await detach());
    console.log(`store system calls: ${JSON.stringify(Object.fromEntries(calls))}`);
    expect([...calls.keys()].toSorted()).toEqual(CALLS.toSorted());
  });

  afterEach(async () => {
    for (const { child, exited } of started.splice(0)) {
      child.kill("SIGKILL");
      await exited;
    }
    // An injected error may leave files behind. sweep() deletes them only now, because their writer has ended.
    await openStore("file", root).sweep();
    expect(await scratchNames()).toEqual([]);
  });

  afterAll(async () => {
    if (root !== undefined) await rm(join(root, ".."), { recursive: true, force: true });
  });

  async function start(): Promise<Committer> {
    const committer = new Committer(root);
    started.push(committer);
    expect(await committer.answer()).toBe("ready");
    return committer;
  }

  /**
   * Lets the committer make one update under `injection`, while another writer makes updates without a pause. If the
   * other writer does the work for which the committer would make `call`, lets the committer make another update alone.
   */
  async function tamper(committer: Committer, call: string, injection: string, hit: string) {
    const crowded = await tamperOnce(committer, call, injection, true);
    const result = crowded.trace.includes(hit) ? crowded : await tamperOnce(committer, call, injection, false);
    expect(result.trace.includes(hit), `${call}:${injection} met:\n${result.trace}`).toBe(true);
    return result;
  }

  async function tamperOnce(committer: Committer, call: string, injection: string, crowded: boolean) {
    const key = `key${number++}`;
    // An earlier case may have killed the lock's holder. Delete the lock, so that this case does not wait for it.
    await rm(join(root, "registry.lock"), { recursive: true, force: true });
    const other = openStore("file", root);
    const expressions = [`trace=${CALLS.join(",")}`, `inject=${call}:${injection}`];
    const detach = await attach(committer.child.pid ?? 0, log, expressions);
    let finished = false;
    const others = crowded ? countUntil(other, key, () => finished) : Promise.resolve(undefined);
    const answer = await committer.count(key);
    finished = true;
    const acked = await others;
    const trace = await detach();
    const { servers } = await other.registry.read();
    // All updates of the other writer are recorded, whether the committer's update succeeded or not.
    if (crowded) expect(parseCounts(servers.other?.failure ?? null).next).toEqual({ [key]: acked });
    expect(other.takeWarnings()).toEqual([]);
    return { answer, trace, times: parseCounts(servers.victim?.failure ?? null).next[key] ?? 0 };
  }

  function occurrences(): [string, number][] {
    return [...calls].flatMap(([call, count]) =>
      Array.from({ length: count }, (_, index) => [call, index + 1] as [string, number]),
    );
  }

  it("a commit killed at any system call leaves the old state or the new one, and nothing to delete by hand", async () => {
    const outcomes = { old: 0, new: 0 };
    for (const [call, when] of occurrences()) {
      const committer = await start();
      const signal = `signal=SIGKILL:when=${when}`;
      const { answer, times } = await tamper(committer, call, signal, "+++ killed by SIGKILL +++");
      await committer.exited;
      const at = `${call} #${when}`;
      expect(answer, at).toBeUndefined();
      expect([0, 1], at).toContain(times);
      outcomes[times === 0 ? "old" : "new"]++;
      await addTo(openStore("file", root), "next");
      expect(await scratchNames(), at).toEqual([]);
    }
    console.log(`store system calls: killed ${JSON.stringify(outcomes)}`);
    // Both outcomes must occur. Otherwise the kills did not hit the calls before and after the commit.
    expect(Math.min(outcomes.old, outcomes.new)).toBeGreaterThan(0);
  });

  it("a commit reports the error of each system call that it needs, and leaves no temp file", async () => {
    const outcomes: Record<string, number> = {};
    const committer = await start();
    // The code handles both errors alike, so one is enough here. The next test injects both into the calls that matter.
    for (const error of SOAK ? ERRORS : ["EIO"]) {
      for (const [call, when] of occurrences()) {
        const { answer, times } = await tamper(committer, call, `error=${error}:when=${when}`, "(INJECTED)");
        const at = `${call} #${when} ${error}: ${answer}`;
        if (answer?.startsWith("acked")) expect(times, at).toBe(1);
        else expect(answer, at).toBe("failed FLEET_STATE_UNWRITABLE");
        expect(times, at).toBeLessThanOrEqual(1);
        const outcome = `${call} ${answer} ${times}`;
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
      }
    }
    console.log(`store system calls: errors ${JSON.stringify(outcomes, null, 1)}`);
  });

  it.each([
    ["fchmod", 1, "the previous revision", false],
    ["fchmod", 2, "the temp file", true],
    ["pwrite64", 1, "the temp file", true],
    ["fsync", 1, "the temp file", true],
    ["link", 1, "the new revision", false],
  ])(
    "a commit whose %s call number %d fails (on %s) is refused, keeps the old state, and removes its temp file",
    async (call, when, _, canMakeRoom) => {
      for (const error of ERRORS) {
        const committer = await start();
        const { answer, trace, times } = await tamperOnce(committer, call, `error=${error}:when=${when}`, false);
        expect(trace).toContain("(INJECTED)");
        // On a full disk, the commit deletes old revisions, and writes again. strace injects only one error.
        const isMade = canMakeRoom && error === "ENOSPC";
        const expected = isMade
          ? { answer: "acked 0", times: 1 }
          : { answer: "failed FLEET_STATE_UNWRITABLE", times: 0 };
        expect({ answer, times }).toEqual(expected);
        expect(await scratchNames()).toEqual([]);
        expect(await committer.count(`again${number}`)).toBe("acked 0");
      }
    },
  );

  it("a commit whose folder cannot be synced is reported as failed, even though it has taken effect", async () => {
    const committer = await start();
    const { answer, times } = await tamperOnce(committer, "fsync", "error=EIO:when=2", false);
    expect({ answer, times }).toEqual({ answer: "failed FLEET_STATE_UNWRITABLE", times: 1 });
  });

  it("a commit whose registry.json cannot be written is acknowledged with a warning", async () => {
    const committer = await start();
    for (const [call, when] of [
      ["pwrite64", 2],
      ["fsync", 3],
      ["rename", 1],
    ] as const) {
      const { answer, times } = await tamperOnce(committer, call, `error=ENOSPC:when=${when}`, false);
      expect({ answer, times }).toEqual({ answer: "acked 1", times: 1 });
      expect(await scratchNames()).toEqual([]);
    }
  });

  it("a commit delayed at any system call takes effect once, and loses no update of another writer", async () => {
    const committer = await start();
    for (const [call, when] of occurrences()) {
      const delay = `delay_enter=${DELAY_MS * 1000}:when=${when}`;
      const { answer, times } = await tamper(committer, call, delay, "(DELAYED)");
      const at = `${call} #${when}`;
      expect({ answer, times }, at).toEqual({ answer: "acked 0", times: 1 });
    }
  });

  async function scratchNames(): Promise<string[]> {
    const names = [...(await readdir(root)), ...(await readdir(join(root, "registry")))];
    return names.filter((name) => name.startsWith("."));
  }
});

async function addTo(store: FileStore, id: string): Promise<void> {
  await store.registry.update(
    (draft) => void Object.assign(draft.servers, { [id]: serverRecord(id, { cwd: `${Math.random()}` }) }),
  );
}

/** Increments the count of `key`, one update after another, until `finished`. @returns the number of updates. */
async function countUntil(store: FileStore, key: string, finished: () => boolean): Promise<number> {
  let acked = 0;
  while (!finished()) {
    await store.registry.update((draft) => {
      draft.servers.other = serverRecord("other", {
        failure: stringifyCounts({ next: { [key]: acked + 1 }, anomalies: [] }),
      });
    });
    acked++;
  }
  return acked;
}
