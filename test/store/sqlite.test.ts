import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { DatabaseSync } from "@photostructure/sqlite";
import { describe, expect, it, onTestFinished } from "vitest";
import { kind } from "../../src/store/rows.js";
import { SqliteRows } from "../../src/store/sqlite/rows.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { seededRandom } from "../fixtures/random.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const NOTES = kind<{ text: string; endsAt: number | null }>("note", { endsAt: ({ endsAt }) => endsAt });
const program = bundleFixture("sqlite-counter");

/** A new folder, which is deleted after the test. */
const folder = async () => dirname(await temporaryRoot());

interface Given {
  now?: number;
  clockId?: string;
  patienceMs?: number;
}

function openAt(path: string, { now = 1_000, clockId = "boot 1", patienceMs = 300 }: Given = {}): SqliteRows {
  const nothing = () => undefined;
  const rows = new SqliteRows(path, {
    durable: false,
    now: () => now,
    clockId,
    checkFolder: nothing,
    ensureFolder: nothing,
    patienceMs,
  });
  onTestFinished(() => rows.close());
  return rows;
}

async function put(rows: SqliteRows, id: string, record: { text: string; endsAt: number | null }): Promise<boolean> {
  const [from = null] = await rows.read(NOTES, [id]);
  return await rows.commit([{ kind: NOTES, id, from, to: record }]);
}

/** Starts a process that counts up in the row `counter`, and writes each acknowledged number to the file. */
function counter(path: string, acks: string, command: "count" | "hold"): ChildProcess {
  const child = spawn(process.execPath, [program, path, acks, command], { stdio: ["ignore", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
}

const ended = (child: ChildProcess) => new Promise<void>((resolve) => child.once("close", () => resolve()));

describe("rows in an SQLite file", () => {
  it("a commit writes all its changes, or none if one of the rows is no longer the one that was read", async () => {
    const rows = openAt(join(await folder(), "state.db"));
    await put(rows, "a", { text: "first", endsAt: null });
    const [a = null] = await rows.read(NOTES, ["a"]);
    await put(rows, "a", { text: "second", endsAt: null });
    const both = [
      { kind: NOTES, id: "a", from: a, to: { text: "third", endsAt: null } },
      { kind: NOTES, id: "b", from: null, to: { text: "new", endsAt: null } },
    ];
    expect(await rows.commit(both)).toBe(false);
    expect(await rows.read(NOTES, ["a", "b"])).toMatchObject([{ record: { text: "second" } }, null]);
  });

  it("a row that was deleted and created again is not the row that was read before", async () => {
    const rows = openAt(join(await folder(), "state.db"));
    await put(rows, "a", { text: "first", endsAt: null });
    const [before = null] = await rows.read(NOTES, ["a"]);
    await rows.commit([{ kind: NOTES, id: "a", from: before, to: null }]);
    await put(rows, "a", { text: "first", endsAt: null });
    expect(await rows.commit([{ kind: NOTES, id: "a", from: before, to: null }])).toBe(false);
  });

  it("a record ends by the database's clock, and at once if that clock has started again", async () => {
    const path = join(await folder(), "host.db");
    await put(openAt(path), "a", { text: "short", endsAt: 2_000 });
    await put(openAt(path), "b", { text: "long", endsAt: null });
    const found = async (rows: SqliteRows) => (await rows.read(NOTES, ["a", "b"])).map((row) => row?.record.text);
    expect(await found(openAt(path, { now: 1_999 }))).toEqual(["short", "long"]);
    expect(await found(openAt(path, { now: 2_000 }))).toEqual([undefined, "long"]);
    const later = openAt(path, { now: 10, clockId: "boot 2" });
    expect(await found(later)).toEqual([undefined, "long"]);
    await put(later, "c", { text: "new", endsAt: 20 });
    expect(await later.ids(NOTES)).toEqual(["b", "c"]);
  });

  it("reading a database that does not exist finds nothing and creates nothing", async () => {
    const path = join(await folder(), "state.db");
    const rows = openAt(path);
    expect(await rows.read(NOTES, ["a"])).toEqual([null]);
    expect(await rows.ids(NOTES)).toEqual([]);
    expect(await rows.count(NOTES)).toBe(0);
    expect(existsSync(path)).toBe(false);
  });

  it("a file that is not a database, and one with a newer schema, are refused and stay as they are", async () => {
    const root = await folder();
    const damaged = join(root, "damaged.db");
    writeFileSync(damaged, "this is not a database, but it is long enough to look like one".repeat(100));
    const before = readFileSync(damaged);
    await expect(put(openAt(damaged), "a", { text: "", endsAt: null })).rejects.toMatchObject({
      code: "FLEET_STATE_CORRUPT",
    });
    expect(readFileSync(damaged)).toEqual(before);

    const newer = join(root, "newer.db");
    await put(openAt(newer), "a", { text: "", endsAt: null });
    const database = new DatabaseSync(newer);
    database.exec("PRAGMA user_version = 99");
    database.close();
    await expect(openAt(newer).read(NOTES, ["a"])).rejects.toMatchObject({ code: "FLEET_PROTOCOL_UNSUPPORTED" });
  });

  it("a writer that is suspended during a commit is named by its pid, and others go on when it ends", async () => {
    const root = await folder();
    const path = join(root, "state.db");
    const rows = openAt(path);
    await put(rows, "a", { text: "before", endsAt: null });
    const holder = counter(path, join(root, "acks"), "hold");
    await new Promise<void>((resolve) => holder.stdout?.once("data", () => resolve()));
    const write = put(rows, "a", { text: "after", endsAt: null });
    await expect(write).rejects.toMatchObject({
      code: "FLEET_STATE_BUSY",
      message: expect.stringContaining(`process ${holder.pid}`),
    });
    expect(await rows.read(NOTES, ["a"])).toMatchObject([{ record: { text: "before" } }]);
    holder.kill("SIGKILL");
    await ended(holder);
    expect(await put(rows, "a", { text: "after", endsAt: null })).toBe(true);
  });

  it("processes that count in one row, and are killed at random, lose no acknowledged number", async () => {
    const random = seededRandom("sqlite counter");
    const root = await folder();
    const path = join(root, "state.db");
    const acks = join(root, "acks");
    const count = () => (existsSync(acks) ? readFileSync(acks, "utf8").split("\n").length - 1 : 0);
    let kills = 0;
    for (let round = 0; round < 5; round++) {
      const before = count();
      const children = Array.from({ length: 4 }, () => counter(path, acks, "count"));
      await expect.poll(count, { timeout: 60_000, interval: 5 }).toBeGreaterThan(before + 20 + random() * 40);
      for (const child of children) {
        child.kill("SIGKILL");
        kills++;
      }
      await Promise.all(children.map(ended));
    }
    const [row] = await openAt(path).read(kind<{ count: number }>("counter"), ["counter"]);
    // A process may be killed between its commit and its acknowledgement.
    expect(row?.record.count).toBeGreaterThanOrEqual(count());
    expect(row?.record.count).toBeLessThanOrEqual(count() + kills);
  });
});
