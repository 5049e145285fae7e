import { mkdtempSync, readdirSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { RoomQueue } from "../../src/sessions/use/server.js";
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

it("only one use at a time may look for room: the first of the user who has gone longest without room", () => {
  const alices = waiters("alice", 100);
  const [bob] = waiters("bob", 1);
  const mayEnter = (...queues: (RoomQueue | undefined)[]) => queues.filter((each) => each?.mayEnter(server));
  expect(mayEnter(bob, ...alices)).toEqual([alices[0]]);
  alices[0]?.enter();
  expect(mayEnter(...alices.slice(1), bob)).toEqual([bob]);
  bob?.enter();
  // A use that arrives later waits, too. alice got room longer ago than bob, so a use of alice is next.
  const late = new RoomQueue("bob");
  expect(mayEnter(late, ...alices.slice(1))).toEqual([alices[1]]);
  const [carol] = waiters("carol", 1);
  expect(mayEnter(late, ...alices.slice(1), carol)).toEqual([carol]);
  for (const each of [...alices, late, carol]) each?.leave();
  expect(waiting()).toEqual([]);
});

it("a use stops waiting for room when it becomes first in the queue, at its time limit, or on abort", async () => {
  const [first, second] = waiters("alice", 2);
  const waited = async (ms: number, signal?: AbortSignal) => await second?.untilHead(server, ms, signal);
  await waited(30);
  await waited(3_600_000, AbortSignal.abort());
  expect(second?.mayEnter(server)).toBe(false);
  const head = waited(3_600_000);
  first?.leave();
  await head;
  expect(second?.mayEnter(server)).toBe(true);
  second?.leave();
});

it("a waiting use does not block others if it gives up, if its process has ended, or if it hangs", () => {
  const { bootId, startTicks } = ownIdentity();
  const [first, second] = waiters("alice", 2);
  const [name = ""] = waiting().sort();
  first?.leave();
  const gone = ["alice", 1, 4_194_303, startTicks, bootId, 0].join("~");
  writeFileSync(join(folder, "waits", gone), "");
  // The process of this waiter is alive, but has not refreshed its file for too long.
  const silent = join(folder, "waits", name.replace(/^\w+~\d+/, "zoe~2"));
  writeFileSync(silent, "");
  utimesSync(silent, new Date(0), new Date(0));
  const [third] = waiters("alice", 1);
  expect([second, third].map((each) => each?.mayEnter(server))).toEqual([true, false]);
  expect(waiting()).not.toContain(gone);
  for (const each of [second, third]) each?.leave();
});
