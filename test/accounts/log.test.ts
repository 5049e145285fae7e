import { existsSync, mkdirSync, readdirSync, rmdirSync, rmSync, statSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Events } from "../../src/accounts/audit/events.js";
import type { Line } from "../../src/accounts/audit/line.js";
import { verifyLog } from "../../src/accounts/audit/verify.js";
import type { NewEvent } from "../../src/base/event.js";
import { LogDatabase } from "../fixtures/events-log.js";
import { removeFolder } from "../fixtures/remove-folder.js";

let root: string;
let log: LogDatabase;
const opened: Events[] = [];
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "copilotfleet-events-"));
  log = new LogDatabase(root);
});
afterEach(async () => {
  for (const events of opened.splice(0)) await events.close();
  await removeFolder(root);
});

function openEvents(): Events {
  const config = { events: { retentionMs: 1_000_000 } };
  const warn = () => undefined;
  const events = new Events({ store: { hosts: null }, config, stateRoot: root, via: "library", warn });
  opened.push(events);
  return events;
}

const issued = (user: string): NewEvent => ({ type: "token.issued", user, detail: "token abc" });

function read(): Line[] {
  return existsSync(join(root, "events.db")) ? log.lines() : [];
}

describe("the audit log", () => {
  it("record() writes the event before it resolves, with its time, actor and place in the chain", async () => {
    await openEvents().record(issued("ann"));
    const [line] = read();
    expect(line).toMatchObject({
      seq: 1,
      type: "token.issued",
      user: "ann",
      outcome: "ok",
      host: null,
      sessionId: null,
    });
    expect(line?.actor).toMatchObject({ user: null, tokenId: null, via: "library", os: expect.any(String) });
    expect(Math.abs(Date.parse(line?.at ?? "") - Date.now())).toBeLessThan(60_000);
    expect(await verifyLog(root)).toEqual({ events: 1, brokenAt: null });
  });

  it("events from note() are written together, before the event of a later record()", async () => {
    const events = openEvents();
    for (const type of ["turn.begun", "turn.ended"] as const) events.note({ type, user: "ann" });
    expect(read()).toEqual([]);
    await events.record(issued("ann"));
    expect(read().map(({ type }) => type)).toEqual(["turn.begun", "turn.ended", "token.issued"]);
  });

  it("events from note() are written within moments, and at the latest when the log is closed", async () => {
    const events = openEvents();
    events.note({ type: "turn.begun" });
    await expect.poll(() => read().length).toBe(1);
    events.note({ type: "turn.ended" });
    await events.close();
    expect(read()).toHaveLength(2);
  });

  it("the audit log is one chain, even if several writers append at the same time", async () => {
    const writers = Array.from({ length: 4 }, () => openEvents());
    for (let round = 0; round < 25; round++) {
      const writes = writers.map(async (events, at) => {
        events.note(issued(`user${at}`));
        await events.close();
      });
      await Promise.all(writes);
    }
    expect(read().map(({ seq }) => seq)).toEqual(Array.from({ length: 100 }, (_, at) => at + 1));
    expect(await verifyLog(root)).toEqual({ events: 100, brokenAt: null });
  });
});

describe("an audit log that cannot be written", () => {
  const UNWRITABLE = "FLEET_EVENTS_UNWRITABLE";
  const block = () => mkdirSync(join(root, "events.db"));
  const unblock = () => rmdirSync(join(root, "events.db"));

  it("if the log is unwritable, note() drops and counts events beyond 10,000, and record() rejects", async () => {
    const events = openEvents();
    block();
    for (let at = 0; at < 10_002; at++) events.note({ type: "turn.begun" });
    await expect(events.record(issued("ann"))).rejects.toMatchObject({ code: UNWRITABLE });
    unblock();
    await events.record(issued("ben"));
    expect(read().map(({ user }) => user)).toContain("ben");
    expect(read().map(({ user }) => user)).not.toContain("ann");
    expect(read().find(({ type }) => type === "events.lost")?.detail).toBe("2 events could not be written");
    expect(events.counts).toMatchObject({ lost: 2, waiting: 0 });
  });
});

describe("the verification of the audit log", () => {
  beforeEach(async () => {
    const events = openEvents();
    for (let at = 1; at <= 5; at++) await events.record(issued(`user${at}`));
  });

  it("verifyLog finds a changed line", async () => {
    log.change(3, (text) => text.replace("user3", "mallory"));
    expect((await verifyLog(root)).brokenAt).toMatchObject({ seq: 3, problem: "line 3 was changed" });
  });

  it("verifyLog finds a line whose hash was changed", async () => {
    log.change(3, (text) => text.replace(/"hash":"./, '"hash":"!'));
    expect((await verifyLog(root)).brokenAt).toMatchObject({ seq: 3 });
  });

  it("verifyLog finds a removed line", async () => {
    log.remove(3);
    expect((await verifyLog(root)).brokenAt).toMatchObject({ seq: 3, problem: "line 3 is missing before line 4" });
  });

  it("verifyLog finds two lines that changed places", async () => {
    const [, , third, fourth] = log.texts();
    log.change(3, () => fourth ?? "");
    log.change(4, () => third ?? "");
    expect((await verifyLog(root)).brokenAt).toMatchObject({ seq: 3 });
  });

  it("verifyLog finds that the last lines were removed, even after new lines were written", async () => {
    for (const seq of [4, 5]) log.remove(seq);
    const broken = { events: 3, brokenAt: { seq: 4, problem: "lines 4 to 5 are missing at the end" } };
    expect(await verifyLog(root)).toEqual(broken);
    await openEvents().record(issued("ann"));
    expect((await verifyLog(root)).brokenAt).toMatchObject({ problem: "lines 4 to 5 are missing before line 6" });
  });

  it("verifyLog finds that the first lines were removed", async () => {
    for (const seq of [1, 2]) log.remove(seq);
    expect((await verifyLog(root)).brokenAt).toMatchObject({ problem: "lines 1 to 2 are missing at the beginning" });
  });

  it("verifyLog finds that the whole log was removed", async () => {
    for (const end of ["", "-wal", "-shm"]) rmSync(join(root, `events.db${end}`), { force: true });
    expect(await verifyLog(root)).toMatchObject({ events: 0, brokenAt: { seq: 1 } });
  });

  it("verifyLog finds a line that was cut short, and the log continues after it", async () => {
    log.change(5, (text) => text.slice(0, 40));
    expect((await verifyLog(root)).brokenAt).toMatchObject({ seq: 5 });
    await openEvents().record(issued("ann"));
    expect((await verifyLog(root)).brokenAt).toMatchObject({ seq: 5 });
  });

  it("verifyLog accepts a name's pseudonym in place of the name, but not the pseudonym of another name", async () => {
    const { Pseudonyms } = await import("../../src/accounts/audit/pseudonyms.js");
    const { of } = await Pseudonyms.open(root, {});
    log.change(3, (text) => text.replace("user3", of("user3")));
    expect(await verifyLog(root)).toEqual({ events: 5, brokenAt: null });
    log.change(3, (text) => text.replace(of("user3"), of("user2")));
    expect((await verifyLog(root)).brokenAt).toMatchObject({ seq: 3 });
  });

  it("the files of the log and the key are private to their owner, and no scratch file stays", () => {
    const names = ["events-head.json", "events.db", "events.db-shm", "events.db-wal", "pseudonym-key", "reserve"];
    expect(readdirSync(root).sort()).toEqual(names);
    for (const name of names) expect(statSync(join(root, name)).mode & 0o077, name).toBe(0);
  });
});
