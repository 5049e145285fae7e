import { appendFileSync, mkdtempSync, readdirSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { userDigest } from "../../src/base/ids.js";
import { openStore } from "../../src/store/store.js";
import { SlotLog } from "../../src/store/file/records/limit-records.js";
import { bootName, ownHolder } from "../../src/store/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";

let root: string;
let folder: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "copilotfleet-slots-"));
  folder = join(root, "slots", userDigest("alice"));
});
afterEach(async () => await removeFolder(root));

const turn = (id: string, most: number | null) => ({ user: "alice", kind: "turn", id, most, perMinute: null }) as const;
/** A holder whose process has ended. If another process had its PID now, that process would have another start time. */
const DEAD = ownHolder().replace(/\.\d+\.[^.]+$/, ".4194303.1");
const logs = () => readdirSync(folder).filter((name) => name.endsWith(".log"));

it("isFirst of the file store ignores a period that began far ahead, because a clock was wrong", async () => {
  const { limits } = openStore("file", root);
  const day = 24 * 3_600_000;
  expect(await limits.isFirst("alice", "tokensPerDay", 400 * day)).toBe(true);
  expect(await limits.isFirst("alice", "tokensPerDay", 10 * day)).toBe(true);
  expect(await limits.isFirst("alice", "tokensPerDay", 10 * day)).toBe(false);
  expect(await limits.isFirst("alice", "tokensPerDay", 9 * day)).toBe(false);
});

it("the slots of a killed process become free as soon as another turn needs them", async () => {
  const store = openStore("file", root);
  expect(await store.limits.take(turn("own", 2))).toEqual({ granted: true });
  new SlotLog(folder, bootName()).append(["take", "dead", "turn", DEAD, 1, null, null]);
  expect(await store.limits.used("alice")).toMatchObject({ concurrentTurns: 1 });
  expect(await store.limits.take(turn("next", 2))).toEqual({ granted: true });
  expect(await store.limits.take(turn("last", 2))).toMatchObject({ granted: false, used: 2 });
  await store.close();
});

it("the slots of a process in another PID namespace (an earlier container) are free for another turn", async () => {
  const store = openStore("file", root);
  const before = DEAD.replace(/^(\w+)\.\d+/, "$1.1");
  new SlotLog(folder, bootName()).append(["take", "before", "turn", before, 1, null, null]);
  expect(await store.limits.take(turn("next", 1))).toEqual({ granted: true });
  await store.close();
});

it("a user's slot log stays short, and every process continues from the state in it", async () => {
  const [one, other] = [openStore("file", root), openStore("file", root)];
  await one.limits.take(turn("lasting", null));
  for (let count = 0; count < 1_500; count++) {
    const at = count % 2 === 0 ? one : other;
    expect(await at.limits.take(turn(`slot-${count}`, 2))).toEqual({ granted: true });
    if (count % 100 === 0) expect(await other.limits.take(turn("more", 2))).toMatchObject({ granted: false });
    await at.limits.giveBack({ user: "alice", kind: "turn", id: `slot-${count}` }, false);
  }
  expect(logs().length).toBeLessThanOrEqual(2);
  for (const log of logs()) expect(statSync(join(folder, log)).size).toBeLessThan(200_000);
  const fresh = openStore("file", root);
  expect(await fresh.limits.used("alice")).toMatchObject({ concurrentTurns: 1, turnsPerMinute: 1 });
  for (const store of [one, other, fresh]) await store.close();
});

it("a user's slot log is not rewritten while most of its entries still count", async () => {
  const store = openStore("file", root);
  for (let count = 0; count < 1_500; count++) {
    await store.limits.take(turn(`slot-${count}`, null));
    await store.limits.giveBack({ user: "alice", kind: "turn", id: `slot-${count}` }, true);
  }
  expect((await store.limits.used("alice")).turnsPerMinute).toBe(1_500);
  expect(statSync(join(folder, logs()[0] ?? "")).size).toBeGreaterThan(64 * 1024);
  expect(logs().map((name) => name.replace(/^\w+-/, ""))).toEqual(["0.log"]);
  await store.close();
});

it("a slot log line that a full disk has cut off does not affect the slots before and after it", async () => {
  const store = openStore("file", root);
  await store.limits.take(turn("first", 2));
  appendFileSync(join(folder, logs()[0] ?? ""), '\n["take","torn","tu');
  expect(await store.limits.take(turn("second", 2))).toEqual({ granted: true });
  expect(await openStore("file", root).limits.take(turn("third", 2))).toMatchObject({ granted: false, used: 2 });
  await store.close();
});

it("slots that were in use before the machine restarted no longer count", async () => {
  new SlotLog(folder, "00000000").append(["take", "old", "turn", ownHolder(), 1, null, null]);
  const store = openStore("file", root);
  expect(await store.limits.take(turn("new", 1))).toEqual({ granted: true });
  expect(logs()).toHaveLength(1);
  await store.close();
});
