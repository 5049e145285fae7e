import { mkdtempSync, readdirSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { ServerRecord } from "../../src/model/server.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { RoomQueue } from "../../src/sessions/memory/room-queue.js";
import { removeFolder } from "../fixtures/remove-folder.js";

let folder: string;
let server: ServerRecord;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "copilotfleet-room-"));
  server = { home: join(folder, "home") } as ServerRecord;
});
afterEach(async () => await removeFolder(folder));

const waiters = (user: string, count: number) =>
  Array.from({ length: count }, () => {
    const queue = new RoomQueue(user);
    queue.waitAt(server);
    return queue;
  });
const waiting = () => readdirSync(join(folder, "waits")).filter((name) => !name.startsWith("served"));

it("anybody may look for room while nobody waits, and leaves nothing behind", () => {
  const queue = new RoomQueue("alice");
  expect(queue.mayEnter(server)).toBe(true);
  queue.enter();
  expect(readdirSync(folder)).toEqual([]);
});

it("users take turns, however many uses of one of them wait", () => {
  const alices = waiters("alice", 100);
  const bob = new RoomQueue("bob");
  // A use that comes later waits, too, and is the first of its user.
  expect(bob.mayEnter(server)).toBe(true);
  expect(alices.filter((each) => each.mayEnter(server))).toEqual(alices.slice(0, 2));
  alices[0]?.enter();
  const [carol] = waiters("carol", 1);
  expect([bob, carol, alices[1], alices[2]].map((each) => each?.mayEnter(server))).toEqual([true, true, true, false]);
  bob.enter();
  const late = new RoomQueue("bob");
  expect(late.mayEnter(server)).toBe(true);
  carol?.enter();
  alices[1]?.enter();
  // Bob's turn was the longest ago.
  const [dave] = waiters("dave", 1);
  expect([late, dave, alices[2], alices[3]].map((each) => each?.mayEnter(server))).toEqual([true, true, true, false]);
  for (const each of [...alices, late, dave]) each?.leave();
  expect(waiting()).toEqual([]);
});

it("a use that gives up, whose process has ended, or that hangs, holds nobody up", () => {
  const { bootId, startTicks } = ownIdentity();
  const [first, second, third] = waiters("alice", 3);
  const [name = ""] = waiting().sort();
  first?.leave();
  const bob = waiters("bob", 1)[0];
  const gone = ["alice", 1, 4_194_303, startTicks, bootId, 0].join("~");
  writeFileSync(join(folder, "waits", gone), "");
  // It lives, but was silent for too long.
  writeFileSync(join(folder, "waits", name.replace(/^\w+~\d+/, "zoe~2")), "");
  utimesSync(join(folder, "waits", name.replace(/^\w+~\d+/, "zoe~2")), new Date(0), new Date(0));
  const [fourth] = waiters("alice", 1);
  expect([second, bob, third].map((each) => each?.mayEnter(server))).toEqual([true, true, true]);
  expect(fourth?.mayEnter(server)).toBe(false);
  expect(waiting()).not.toContain(gone);
  for (const each of [second, third, fourth, bob]) each?.leave();
});
