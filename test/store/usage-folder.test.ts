import { appendFileSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import type { UsagePart } from "../../src/base/usage.js";
import { openStore } from "../../src/store/store.js";
import type { UsageFolder } from "../../src/store/usage/usage-folder.js";
import { requestLines } from "../contract/usage.contract.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** The start of the tests. `tokensSince` counts from the beginning of this day, which may end during a test. */
const STARTED = Date.now();
const KINDS = ["user", "session", "model", "token", "day"] as const;

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
    usage = openStore("file", root).usage;
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

  it("renaming a user in the ledger also removes the name from a line that a full disk has cut off", async () => {
    usage.append(requestLines("1"));
    appendFileSync(usage.segments.pathOf(1), '\n{"id":"torn","user":"canary","sess');
    await usage.rename(renaming([["canary", "~x"]]));
    expect(readFileSync(usage.segments.pathOf(1), "utf8")).not.toContain("canary");
    expect(await requests()).toBe(1);
  });
});
