import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Events, trimEvents } from "../../src/accounts/audit/events.js";
import { readEvents } from "../../src/accounts/audit/query.js";
import { verifyLog } from "../../src/accounts/audit/verify.js";
import { ownEvents } from "../../src/hosts/local-host.js";
import { ChainWriter, compact, LogFiles, readHead, removeSegments } from "../../src/store/file/events.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const DAY_MS = 24 * 3_600_000;

let root: string;
let files: LogFiles;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "copilotfleet-rotation-"));
  files = new LogFiles(root);
});
afterEach(async () => {
  vi.useRealTimers();
  await removeFolder(root);
});

const config = { events: { retentionMs: 90 * DAY_MS } };

function openEvents(stateRoot = root, { host = "" } = {}): Events {
  const store = { hosts: host === "" ? null : ({ own: host } as never) };
  return new Events({ store, config, stateRoot, via: "library", warn: () => undefined });
}

const log = (stateRoot: string) => ({ stateRoot, events: { flush: async () => undefined } });

async function write(events: Events, count: number): Promise<void> {
  for (let at = 0; at < count; at++) {
    events.note({ type: "turn.begun", user: "ann" });
    await events.flush();
  }
}

describe("the rotation of the audit log", () => {
  it("a writer that was suspended during a compaction appends at the log's end, not at a freed number", async () => {
    const suspended = openEvents();
    await write(suspended, 1);
    await write(openEvents(), 20);
    await compact(files, 1024 * 1024);
    expect(files.listBatches()).not.toContain(2);
    await write(suspended, 1);
    expect(readHead(files).seq).toBe(22);
    expect(files.listBatches()).not.toContain(2);
    expect(await verifyLog(root)).toEqual({ events: 22, brokenAt: null });
  });

  it("a batch is written again if its temporary file was deleted before the batch was moved into place", async () => {
    let sweeps = 0;
    const swept = {
      // Runs after the file was opened, as a sweep in another PID namespace may.
      [Symbol.toPrimitive]: () => {
        if (++sweeps === 1) for (const name of readdirSync(files.open)) rmSync(join(files.open, name));
        return '{"seq":1,"hash":"a","prev":""}\n';
      },
    };
    const build = () => ({ text: swept as unknown as string, head: { seq: 1, hash: "a" } });
    await new ChainWriter(root, { segmentBytes: 1024 }).append(build, { durable: true });
    expect([sweeps, files.listBatches()]).toEqual([2, [1]]);
  });

  it("a line that two processes have put into different segments counts once", async () => {
    const events = openEvents();
    await write(events, 30);
    const lines = [...files.listBatches()].map((first) => readFileSync(files.batchPath(first), "utf8"));
    const segment = (first: number, last: number) =>
      writeFileSync(files.segmentPath(first, last), lines.slice(first - 1, last).join(""));
    mkdirSync(files.segments);
    for (const [first, last] of [
      [1, 4],
      [1, 12],
      [5, 12],
      [5, 15],
      [9, 12],
    ] as const)
      segment(first, last);
    expect(await verifyLog(root)).toEqual({ events: 30, brokenAt: null });
    expect((await ownEvents(log(root), { limit: 100 })).events.map(({ seq }) => seq)).toEqual(
      lines.map((_, at) => at + 1),
    );
    await Promise.all([compact(files, 100), compact(files, 100), compact(files, 1024 * 1024)]);
    expect(await verifyLog(root)).toEqual({ events: 30, brokenAt: null });
  });

  it("verifyLog accepts a log that the fleet shortened, but not one whose first segment was removed", async () => {
    const events = openEvents();
    for (let round = 0; round < 4; round++) {
      await write(events, 12);
      await compact(files, 1_000);
    }
    await trimEvents({ config, events, stateRoot: root, maxBytes: 6_000 });
    expect(files.bytes()).toBeLessThan(10_000);
    const [first] = files.listSegments();
    expect(first?.first).toBeGreaterThan(1);
    expect((await verifyLog(root)).brokenAt).toBeNull();
    rmSync(first?.path ?? "");
    expect((await verifyLog(root)).brokenAt).toMatchObject({ problem: expect.stringContaining("at the beginning") });
  });

  it("the age limit deletes old events, but deletes none because the clock briefly jumps ahead", async () => {
    const events = openEvents();
    const start = Date.now();
    vi.useFakeTimers({ toFake: ["Date"] });
    const at = async (days: number) => {
      vi.setSystemTime(start + days * DAY_MS);
      await write(events, 9);
      await compact(files, 100);
    };
    for (const days of [0, 1, 2]) await at(days);
    const before = files.listSegments().length;
    vi.setSystemTime(start + 400 * DAY_MS);
    await write(events, 1);
    await trimEvents({ config, events, stateRoot: root });
    expect(files.listSegments().length).toBeGreaterThanOrEqual(before);
    for (const days of [3, 95, 97]) await at(days);
    await trimEvents({ config, events, stateRoot: root });
    expect(files.listSegments()[0]?.first).toBeGreaterThan(1);
    expect((await verifyLog(root)).brokenAt).toBeNull();
  });

  it("a segment with a damaged end does not keep the age limit from deleting later segments", async () => {
    const events = openEvents();
    const start = Date.now();
    vi.useFakeTimers({ toFake: ["Date"] });
    for (const days of [0, 1, 2, 95, 97, 99]) {
      vi.setSystemTime(start + days * DAY_MS);
      await write(events, 9);
      await compact(files, 100);
    }
    const [torn, after] = files.listSegments();
    writeFileSync(torn?.path ?? "", readFileSync(torn?.path ?? "", "utf8").slice(0, -9));
    await trimEvents({ config, events, stateRoot: root });
    expect(files.listSegments()[0]?.first).toBeGreaterThan(after?.last ?? 0);
  });

  it("deleting a segment also deletes a shorter copy of its first lines that a killed process left", async () => {
    const events = openEvents();
    await write(events, 30);
    await compact(files, 100);
    await write(events, 20);
    await compact(files, 100);
    const [first, second] = files.listSegments();
    if (first === undefined || second === undefined) throw new Error("there are too few segments");
    const lines = readFileSync(first.path, "utf8").split("\n").slice(0, 4);
    writeFileSync(files.segmentPath(first.first, first.first + 3), `${lines.join("\n")}\n`);
    await events.record({ type: "events.shortened", reason: String(first.last) });
    removeSegments(files, [first]);
    expect(files.listAllSegments().map((each) => each.first)).toEqual([second.first]);
    expect((await verifyLog(root)).brokenAt).toBeNull();
  });

  it("a reader misses no line even if batches that it is about to read become part of a segment", async () => {
    const events = openEvents();
    await write(events, 10);
    await write(events, 10);
    mkdirSync(files.segments);
    /** Moves batches into a segment as `compact` does, but synchronously. */
    const move = (first: number, last: number) => {
      const paths = files.listBatches().flatMap((at) => (at < first || at > last ? [] : files.batchPath(at)));
      writeFileSync(files.segmentPath(first, last), paths.map((path) => readFileSync(path, "utf8")).join(""));
      for (const path of paths) rmSync(path);
    };
    // A reader lists the files, reads the first one, and pauses.
    const reading = readEvents(root, { limit: 100 });
    move(1, 12);
    const first = await reading;
    expect(first.hasMore).toBe(true);
    const second = await readEvents(root, { limit: 100, after: first.next });
    expect(second.hasMore).toBe(false);
    const seen = [...first.events, ...second.events].map(({ seq }) => seq);
    expect(seen).toEqual(Array.from({ length: 20 }, (_, at) => at + 1));
  });

  it.each([1, 2, 3, 4, 5])(
    "a compaction keeps the segment that another process adds after its list %i of segments",
    async (at) => {
      const events = openEvents();
      await write(events, 20);
      await compact(files, 1024 * 1024);
      await write(events, 20);
      const other = new LogFiles(root);
      const list = files.listAllSegments.bind(files);
      let lists = 0;
      files.listAllSegments = () => {
        const found = list();
        if (++lists !== at) return found;
        // The other process compacts the log from beginning to end.
        const [old] = other.listSegments();
        const moved = other.listBatches().filter((first) => first > (old?.last ?? 0) && first <= 36);
        const paths = [...(old === undefined ? [] : [old.path]), ...moved.map((first) => other.batchPath(first))];
        writeFileSync(other.segmentPath(1, 36), paths.map((path) => readFileSync(path, "utf8")).join(""));
        for (const path of paths) rmSync(path);
        return found;
      };
      await compact(files, 1024 * 1024);
      expect(await verifyLog(root)).toEqual({ events: 40, brokenAt: null });
      expect((await readEvents(root, { limit: 100 })).events).toHaveLength(40);
    },
  );

  it("writing and compacting the log leaves no scratch files", async () => {
    await write(openEvents(), 12);
    await compact(files, 1024 * 1024);
    const names = [...readdirSync(files.open), ...readdirSync(files.segments), ...readdirSync(root)];
    expect(names.filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("if building a line fails, append() rejects and writes nothing", async () => {
    const writer = new ChainWriter(root, { segmentBytes: 1_000 });
    const fail = () => {
      throw new Error("no line");
    };
    await expect(writer.append(fail, { durable: true })).rejects.toThrow("no line");
    expect(readHead(files).seq).toBe(0);
  });
});

describe("the events of this host", () => {
  it("ownEvents reads a log in pages, and waits for the next event", async () => {
    const events = openEvents();
    await write(events, 5);
    const own = log(root);
    const first = await ownEvents(own, { limit: 3 });
    expect(first.events.map(({ seq }) => seq)).toEqual([1, 2, 3]);
    expect(first.hasMore).toBe(true);
    const second = await ownEvents(own, { limit: 3, after: first.next });
    expect(second).toMatchObject({ events: [{ seq: 4 }, { seq: 5 }], hasMore: false });
    const waiting = ownEvents(own, { limit: 3, after: second.next, waitMs: 10_000 });
    await write(events, 1);
    expect((await waiting).events).toMatchObject([{ seq: 6, type: "turn.begun" }]);
    expect((await ownEvents(own, { limit: 9, user: "ben" })).events).toEqual([]);
    expect((await ownEvents(own, { limit: 9, types: ["token.issued"] })).events).toEqual([]);
  });
});
