import { appendFileSync, mkdirSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import type { FleetHosts } from "../../src/hosts/fleet-hosts.js";
import { HistoryFeeds, LOOK_MS, LOOK_REPORTED_MS } from "../../src/hosts/sessions/feeds.js";
import { historyState } from "../../src/runtime/history/session-state.js";
import type { SessionPlace } from "../../src/sessions/history.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

/** Histories in a temporary folder, and a host that records each look at them. */
class Histories {
  readonly root = mkdtempSync(join(tmpdir(), "copilotfleet-feeds-"));
  readonly clock = new TestClock();
  /** For each look at the histories, the ids of the sessions. */
  readonly looks: string[][] = [];
  /** The folder that the kernel watches instead of the sessions' folders, as if another machine wrote the histories. */
  readonly watched: string | undefined;
  readonly feeds: HistoryFeeds;
  fails = false;

  constructor({ isReported = true } = {}) {
    onTestFinished(async () => await removeFolder(this.root));
    if (!isReported) {
      this.watched = join(this.root, "elsewhere");
      mkdirSync(this.watched);
    }
    const own = {
      folderOf: async ({ id }: SessionPlace) => await Promise.resolve(this.watched ?? this.folder(id)),
      histories: async ({ sessions }: { sessions: SessionPlace[] }) => {
        this.looks.push(sessions.map(({ id }) => id));
        if (this.fails) throw new Error("away");
        return await Promise.resolve(sessions.map(({ id }) => historyState(this.folder(id))));
      },
    };
    this.feeds = new HistoryFeeds({ own, at: () => own } as unknown as FleetHosts, this.clock);
  }

  folder(id: string): string {
    return join(this.root, id);
  }

  make(id: string): void {
    mkdirSync(this.folder(id));
    this.append(id);
  }

  append(id: string): void {
    appendFileSync(join(this.folder(id), "events.jsonl"), "{}\n");
  }

  /** Starts a follower that waits for each change. `wakes` counts how often it was woken. */
  follow(id: string) {
    const following = this.feeds.follow(id);
    const abort = new AbortController();
    const follower = { wakes: 0, end: () => abort.abort() };
    void (async () => {
      while (!abort.signal.aborted) {
        const version = await following.feed.aim(sessionRecord(id), null);
        await following.feed.changed(version, abort.signal, undefined);
        if (!abort.signal.aborted) follower.wakes++;
      }
      following[Symbol.dispose]();
    })();
    onTestFinished(follower.end);
    return follower;
  }

  /** Moves the clock on in steps, so that the work of each timer ends before the next one. */
  async pass(ms: number): Promise<void> {
    for (let past = 0; past < ms; past += LOOK_MS) {
      this.clock.jump(LOOK_MS);
      this.clock.runDue();
      await settled();
    }
  }
}

/** Lets the promises of the code under test settle. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise(setImmediate);
}

/** Starts followers, and waits for the first look, after which each follower always reads once more. */
async function followed(at: Histories, ids: readonly string[]) {
  const followers = ids.map((id) => at.follow(id));
  await settled();
  await at.pass(LOOK_MS);
  at.clock.jump(100); // so that the next wake-up may come at once
  for (const follower of followers) follower.wakes = 0;
  at.looks.length = 0;
  return followers;
}

it("a follower wakes as soon as the kernel reports a change, without waiting for the timer", async () => {
  const at = new Histories();
  at.make("a");
  const [follower] = await followed(at, ["a"]);
  at.append("a");
  await expect.poll(() => follower?.wakes).toBe(1);
  expect(at.looks).toEqual([]);
});

it("a change that the kernel does not report wakes a follower within 2 s, each later one within 250 ms", async () => {
  const at = new Histories({ isReported: false });
  at.make("a");
  const [follower] = await followed(at, ["a"]);
  at.append("a");
  await at.pass(LOOK_REPORTED_MS);
  expect(follower?.wakes).toBe(1);
  at.append("a");
  await at.pass(LOOK_MS);
  expect(follower?.wakes).toBe(2);
});
