import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import type { UsagePart } from "../../src/base/usage.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import { SegmentFile } from "../../src/store/usage/segments.js";
import type { UsageFolder } from "../../src/store/usage/usage-folder.js";
import { requestLines } from "../contract/usage.contract.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** The start of the tests. `tokensSince` counts from the beginning of this day, which may end during a test. */
const STARTED = Date.now();
const KINDS = ["user", "session", "model", "token", "day"] as const;
/** The lines of this many requests take more than 1 MB. */
const MANY = 3_000;

const renaming = (users: [string, string][]) => ({ users: new Map(users), sessions: new Map<string, string>() });
const asText = (part: UsagePart) => JSON.stringify(part);

describe("the ledger on the disk of one host", () => {
  let root: string;
  let usage: UsageFolder;
  const all = { from: 0, to: Date.now() + 1_000_000, by: "user" } as const;
  const files = () => readdirSync(join(root, "usage")).sort();
  const requests = async (query: { from: number; to: number } = all) =>
    (await usage.read({ ...all, ...query })).reduce((sum, part) => sum + part.requests, 0);

  beforeEach(async () => {
    root = await temporaryRoot();
    usage = openFileStore(root).usage;
  });

  it("a usage query gives the same answers from the lines and from the sums of a sealed segment", async () => {
    const hour = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
    for (let index = 0; index < 300; index++) {
      const at = new Date(hour - (index % 100) * 10 * 60_000 - index).toISOString();
      const [user, sessionId] = [`u${index % 3}`, `s${index % 7}`];
      usage.append(requestLines(String(index), { at, user, sessionId, tokenId: index % 2 === 0 ? "k" : null }));
    }
    const queries = KINDS.flatMap((by) => [
      { ...all, by },
      { ...all, by, user: "u1" },
      { by, from: hour - 7.3 * HOUR_MS, to: hour - 2.2 * HOUR_MS },
    ]);
    const read = async () =>
      await Promise.all(queries.map(async (query) => (await usage.read(query)).map(asText).sort()));
    const before = await read();
    expect(files()).toEqual(["00000001.jsonl"]);
    usage.segments.seal();
    expect(await read()).toEqual(before);
    expect(files()).toContain("00000001.sums");
    const whole = async () => {
      const parts = await Promise.all(KINDS.map(async (by) => (await usage.read({ ...all, by })).map(asText).sort()));
      return parts;
    };
    const sums = await whole();
    // Blank the lines, so that only the sums can answer.
    const lines = readFileSync(usage.segments.pathOf(1));
    writeFileSync(usage.segments.pathOf(1), Buffer.alloc(lines.length, "\n"));
    expect(await whole()).toEqual(sums);
    expect(await requests({ from: hour - 7.3 * HOUR_MS, to: hour })).toBeGreaterThan(0);
    writeFileSync(usage.segments.pathOf(1), lines);
    // A process that was already writing adds a line to the sealed segment.
    appendFileSync(
      usage.segments.pathOf(1),
      `\n${requestLines("late", { user: "u1" })
        .map((l) => JSON.stringify(l))
        .join("\n")}\n`,
    );
    expect(await requests()).toBe(301);
    expect(await usage.tokensSince("u1", hour - 30 * DAY_MS)).toBe(101 * 15);
  });

  it("the ledger skips a line that a full disk has cut off, and loses none of the lines after it", async () => {
    usage.append(requestLines("1"));
    appendFileSync(usage.segments.pathOf(1), '\n{"id":"torn","at":"2026-11');
    expect(await requests()).toBe(1);
    usage.append(requestLines("2"));
    expect(await requests()).toBe(2);
    expect(await usage.tokensSince("ann", STARTED)).toBe(30);
  });

  it("a line that lacks only its newline after the disk was full still counts once its segment is sealed", async () => {
    usage.append(requestLines("1"));
    appendFileSync(usage.segments.pathOf(1), `\n${JSON.stringify(requestLines("2")[0])}`);
    usage.segments.seal();
    expect(await requests()).toBe(2);
  });

  it("the tokens in a new ledger file count, even if it has the inode number of a deleted ledger file", async () => {
    const [before, after] = [openFileStore(root).usage, openFileStore(root).usage];
    before.append(requestLines("1"));
    await before.close();
    expect(await usage.tokensSince("ann", STARTED)).toBe(15);
    rmSync(usage.segments.pathOf(1));
    after.append(requestLines("2", { user: "bob" }));
    await after.close();
    expect([await usage.tokensSince("ann", STARTED), await usage.tokensSince("bob", STARTED)]).toEqual([0, 15]);
  });

  it("the tokens of earlier segments count even if the newest sealed segment has no complete line", async () => {
    usage.append(requestLines("1"));
    usage.segments.seal();
    appendFileSync(usage.segments.pathOf(2), '\n{"id":"torn","at":"2026-11\n');
    usage.segments.seal();
    await usage.settled();
    expect(await openFileStore(root).usage.tokensSince("ann", STARTED)).toBe(15);
  });

  it("upkeep deletes segments whose lines are all older than the retention, and no newer segments", async () => {
    usage.append(requestLines("1", { at: new Date(Date.now() - 3 * DAY_MS).toISOString() }));
    usage.segments.seal();
    usage.append(requestLines("2", { at: new Date(Date.now() - DAY_MS).toISOString() }));
    usage.segments.seal();
    usage.append(requestLines("3"));
    await usage.upkeep(2 * DAY_MS);
    expect(files().filter((name) => name.endsWith(".jsonl"))).toEqual(["00000002.jsonl", "00000003.jsonl"]);
    expect(await requests()).toBe(2);
  });

  it("upkeep deletes an old segment without lines, and the old segments that follow it", async () => {
    const [empty, old] = [1, 2].map((number) => {
      usage.append(requestLines(String(number), { at: new Date(Date.now() - 3 * DAY_MS).toISOString() }));
      usage.segments.seal();
      return usage.segments.pathOf(number);
    });
    truncateSync(empty ?? "");
    utimesSync(empty ?? "", new Date(Date.now() - 3 * DAY_MS), new Date(Date.now() - 3 * DAY_MS));
    await usage.upkeep(2 * DAY_MS);
    expect([empty, old].filter((path) => existsSync(path ?? ""))).toEqual([]);
  });

  it("renaming a user in the ledger leaves the old name in no file, and keeps the files private", async () => {
    usage.append(requestLines("1", { user: "canary" }));
    usage.segments.seal();
    await usage.upkeep(DAY_MS);
    await usage.rename(renaming([["canary", "~x"]]));
    const contents = files().map((name) => readFileSync(join(root, "usage", name), "utf8"));
    expect(contents.join("")).not.toContain("canary");
    expect(await requests()).toBe(1);
    for (const name of files()) expect(statSync(join(root, "usage", name)).mode & 0o077).toBe(0);
  });

  it("a process still counts and appends correctly after a rename has replaced the segment it writes to", async () => {
    const other = openFileStore(root).usage;
    usage.append(requestLines("1"));
    expect(await usage.tokensSince("ann", STARTED)).toBe(15);
    await other.rename(renaming([["ann", "~a-much-longer-name"]]));
    usage.append(requestLines("2", { user: "bob" }));
    expect(await requests()).toBe(2);
    expect(await usage.tokensSince("bob", STARTED)).toBe(15);
    expect(await other.tokensSince("~a-much-longer-name", STARTED)).toBe(15);
  });

  const appendMany = () => {
    for (let index = 0; index < MANY; index += 500)
      usage.append(Array.from({ length: 500 }, (_, each) => requestLines(String(index + each))).flat());
  };
  /** Calls `call` after each piece of a segment has been read. */
  const onPiece = (call: () => void) => {
    const { pieces } = SegmentFile.prototype;
    const spy = vi.spyOn(SegmentFile.prototype, "pieces").mockImplementation(function* (this: SegmentFile, ...part) {
      for (const piece of pieces.apply(this, part)) {
        call();
        yield piece;
      }
    });
    onTestFinished(() => spy.mockRestore());
  };
  const sumsPath = () => usage.segments.pathOf(1).replace("jsonl", "sums");

  it("the sums of the newest segment are extended after many new lines, and not after each line", async () => {
    appendMany();
    expect(await requests()).toBe(MANY);
    const first = readFileSync(sumsPath());
    usage.append(requestLines("one"));
    expect(await requests()).toBe(MANY + 1);
    expect(readFileSync(sumsPath())).toEqual(first);
    // Blank the first lines. They still count, because the sums include them.
    writeFileSync(usage.segments.pathOf(1), Buffer.alloc(statSync(usage.segments.pathOf(1)).size, "\n"));
    appendMany();
    expect(await requests()).toBe(2 * MANY);
    expect(readFileSync(sumsPath())).not.toEqual(first);
    expect(await openFileStore(root).usage.tokensSince("ann", STARTED)).toBe(2 * MANY * 15);
  });

  it("a query reads the lines if the sums are damaged, outdated, or cover more than the segment", async () => {
    usage.append([...requestLines("1", { user: "canary" }), ...requestLines("2")]);
    usage.segments.seal();
    expect(await requests()).toBe(2);
    const sums = readFileSync(sumsPath());
    for (const bytes of [
      sums.subarray(0, sums.length - 1),
      sums.subarray(0, 300),
      Buffer.from("{}\n"),
      Buffer.alloc(0),
    ]) {
      writeFileSync(sumsPath(), bytes);
      expect(await requests()).toBe(2);
    }
    await usage.rename(renaming([["canary", "~canary-of-another-length"]]));
    writeFileSync(sumsPath(), sums);
    expect((await usage.read(all)).map(({ user }) => user).sort()).toEqual(["ann", "~canary-of-another-length"]);
    // Cut off the last line, as a power failure may.
    const { size } = statSync(usage.segments.pathOf(1));
    truncateSync(usage.segments.pathOf(1), size - 10);
    expect(await requests()).toBe(2);
    expect((await usage.read(all)).find(({ user }) => user === "ann")).toMatchObject({ inputTokens: null });
  });

  it("a query also counts the lines after a line that is longer than one read", async () => {
    usage.append(requestLines("1", { model: "x".repeat(500_000) }));
    usage.append(requestLines("2"));
    expect(await requests()).toBe(2);
    usage.segments.seal();
    expect(await requests()).toBe(2);
    expect(await usage.tokensSince("ann", Date.now())).toBe(30);
  });

  it("the process can do other work between any two pieces of lines that the ledger reads", async () => {
    appendMany();
    let turn = 0;
    let isOver = false;
    const count = () => {
      turn++;
      if (!isOver) setImmediate(count);
    };
    onTestFinished(() => {
      isOver = true;
    });
    const turns: number[] = [];
    onPiece(() => turns.push(turn));
    count();
    await usage.settled();
    // A folder in place of the sums makes a query read the lines.
    rmSync(sumsPath());
    mkdirSync(sumsPath());
    await usage.read({ ...all, from: 1 });
    await usage.tokensSince("ann", STARTED);
    isOver = true;
    expect(turns.length).toBeGreaterThan(3 * Math.floor(statSync(usage.segments.pathOf(1)).size / (128 * 1024)));
    expect(new Set(turns).size).toBe(turns.length);
  });

  it("two renames of users in the ledger at the same time both take effect", async () => {
    for (let segment = 0; segment < 5; segment++) {
      usage.append([...requestLines("1", { user: "canary-a" }), ...requestLines("2", { user: "canary-b" })]);
      usage.segments.seal();
    }
    await Promise.all([
      usage.rename(renaming([["canary-a", "~a"]])),
      openFileStore(root).usage.rename(renaming([["canary-b", "~b"]])),
    ]);
    const contents = files().map((name) => readFileSync(join(root, "usage", name), "utf8"));
    expect(contents.join("")).not.toContain("canary");
    expect((await usage.read(all)).map(({ user, requests: count }) => [user, count]).sort()).toEqual([
      ["~a", 5],
      ["~b", 5],
    ]);
  });

  it("renaming a user in the ledger also removes the name from a line that a full disk has cut off", async () => {
    usage.append(requestLines("1"));
    appendFileSync(usage.segments.pathOf(1), '\n{"id":"torn","user":"canary","sess');
    await usage.rename(renaming([["canary", "~x"]]));
    expect(readFileSync(usage.segments.pathOf(1), "utf8")).not.toContain("canary");
    expect(await requests()).toBe(1);
  });

  it("renaming a user in the ledger also renames the user in a line that is appended during the rename", async () => {
    usage.append(requestLines("1", { user: "canary" }));
    let isLate = true;
    onPiece(() => {
      if (isLate)
        appendFileSync(usage.segments.pathOf(1), `\n${JSON.stringify(requestLines("2", { user: "canary" })[0])}\n`);
      isLate = false;
    });
    await usage.rename(renaming([["canary", "~x"]]));
    expect((await usage.read(all)).map(({ user, requests: count }) => [user, count])).toEqual([["~x", 2]]);
  });

  it("upkeep also deletes old lines of the newest segment once a later day has begun", async () => {
    usage.append(requestLines("1", { at: new Date(Date.now() - 3 * DAY_MS).toISOString() }));
    await usage.upkeep(2 * DAY_MS);
    expect(readFileSync(usage.segments.pathOf(2), "utf8")).toBe("");
    expect(files().filter((name) => name.endsWith(".jsonl"))).toEqual(["00000002.jsonl"]);
  });
});
