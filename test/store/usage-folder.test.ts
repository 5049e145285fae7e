import { appendFileSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { openFileStore } from "../../src/store/file/file-store.js";
import type { UsageFolder } from "../../src/store/usage/usage-folder.js";
import { requestLines } from "../contract/usage.contract.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

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

  it("answers the same from the lines and from the sums of a sealed segment", async () => {
    const hour = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
    for (let index = 0; index < 300; index++) {
      const at = new Date(hour - (index % 100) * 10 * 60_000 - index).toISOString();
      const [user, sessionId] = [`u${index % 3}`, `s${index % 7}`];
      usage.append(requestLines(String(index), { at, user, sessionId, tokenId: index % 2 === 0 ? "k" : null }));
    }
    const queries = (["user", "session", "model", "token", "day"] as const).flatMap((by) => [
      { ...all, by },
      { ...all, by, user: "u1" },
      { by, from: hour - 7.3 * HOUR_MS, to: hour - 2.2 * HOUR_MS },
    ]);
    const read = async () =>
      await Promise.all(
        queries.map(async (query) => (await usage.read(query)).map((part) => JSON.stringify(part)).sort()),
      );
    const before = await read();
    expect(files()).toEqual(["00000001.jsonl"]);
    usage.segments.seal();
    await usage.upkeep(DAY_MS * 9);
    expect(files()).toContain("00000001.session.json");
    expect(await read()).toEqual(before);
    // A process that was just writing adds a line to the sealed segment.
    appendFileSync(
      usage.segments.pathOf(1),
      `\n${requestLines("late", { user: "u1" })
        .map((l) => JSON.stringify(l))
        .join("\n")}\n`,
    );
    expect(await requests()).toBe(301);
    expect(await usage.tokensSince("u1", hour - 30 * DAY_MS)).toBe(101 * 15);
  });

  it("skips a line that a full disk has cut off, and loses none of the lines after it", async () => {
    usage.append(requestLines("1"));
    appendFileSync(usage.segments.pathOf(1), '\n{"id":"torn","at":"2026-11');
    expect(await requests()).toBe(1);
    usage.append(requestLines("2"));
    expect(await requests()).toBe(2);
    expect(await usage.tokensSince("ann", Date.now())).toBe(30);
  });

  it("deletes segments whose lines are all older than the retention, and no newer ones", async () => {
    usage.append(requestLines("1", { at: new Date(Date.now() - 3 * DAY_MS).toISOString() }));
    usage.segments.seal();
    usage.append(requestLines("2", { at: new Date(Date.now() - DAY_MS).toISOString() }));
    usage.segments.seal();
    usage.append(requestLines("3"));
    await usage.upkeep(2 * DAY_MS);
    expect(files().filter((name) => name.endsWith(".jsonl"))).toEqual(["00000002.jsonl", "00000003.jsonl"]);
    expect(await requests()).toBe(2);
  });

  it("leaves no name on the disk after a rename, also in the sums, and keeps the files private", async () => {
    usage.append(requestLines("1", { user: "canary" }));
    usage.segments.seal();
    await usage.upkeep(DAY_MS);
    await usage.rename(new Map([["canary", "~x"]]));
    const contents = files().map((name) => readFileSync(join(root, "usage", name), "utf8"));
    expect(contents.join("")).not.toContain("canary");
    expect(await requests()).toBe(1);
    for (const name of files()) expect(statSync(join(root, "usage", name)).mode & 0o077).toBe(0);
  });

  it("gives a process that wrote before the segment was replaced the right counts, and its lines a new segment", async () => {
    const other = openFileStore(root).usage;
    usage.append(requestLines("1"));
    expect(await usage.tokensSince("ann", Date.now())).toBe(15);
    await other.rename(new Map([["ann", "~a-much-longer-name"]]));
    usage.append(requestLines("2", { user: "bob" }));
    expect(await requests()).toBe(2);
    expect(await usage.tokensSince("bob", Date.now())).toBe(15);
    expect(await other.tokensSince("~a-much-longer-name", Date.now())).toBe(15);
  });
});
