import { appendFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { SessionEvent } from "@github/copilot-sdk";
import { expect, it, onTestFinished } from "vitest";
import { Fleet } from "../../src/index.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { answer, prompt, started } from "../fixtures/sessions/history.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();
const ALICE = { user: "alice" };

async function openFleet(): Promise<Fleet> {
  const opened = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
  onTestFinished(() => opened.close());
  return opened;
}

async function pathOf(id: string): Promise<string> {
  return join((await fleet.record("alice")).home, "session-state", id, "events.jsonl");
}

/** The ids of the events in the file. A last line without a line break is left out. */
async function recordedIds(id: string): Promise<string[]> {
  const lines = readFileSync(await pathOf(id), "utf8")
    .split("\n")
    .slice(0, -1);
  return lines.map((text) => (JSON.parse(text) as SessionEvent).id);
}

async function idsOf(opened: Fleet, id: string, after?: string): Promise<string[]> {
  const ids: string[] = [];
  const from = after === undefined ? {} : { after };
  for await (const event of opened.sessions.followEvents(id, { ...ALICE, ...from })) ids.push(event.id);
  return ids;
}

/** Follows the events of a session, and adds their ids to `ids` until `end` is called. */
function follow(opened: Fleet, id: string) {
  const abort = new AbortController();
  const ids: string[] = [];
  const done = (async () => {
    const options = { ...ALICE, follow: true, signal: abort.signal };
    for await (const event of opened.sessions.followEvents(id, options)) ids.push(event.id);
  })();
  return {
    ids,
    done,
    end: async () => {
      abort.abort();
      await done;
    },
  };
}

/** Creates a session, and replaces its history with this text. */
async function plant(id: string, text: string): Promise<string> {
  await fleet.ok(["create", "--user", "alice", "--id", id, "--prompt", "hello"]);
  const path = await pathOf(id);
  writeFileSync(path, text);
  return path;
}

it("followEvents with `after` yields exactly the later events, even from a new Fleet after a server stop", async () => {
  await fleet.ok(["create", "--user", "alice", "--id", "talk", "--prompt", "one"]);
  const before = await idsOf(await openFleet(), "talk");
  await fleet.ok(["stop", "--all"]);
  await fleet.ok(["send", "talk", "two", "--user", "alice"]);
  const opened = await openFleet();
  const all = await idsOf(opened, "talk");
  expect(all).toEqual(await recordedIds("talk"));
  expect(all.slice(0, before.length)).toEqual(before);
  expect(all.length).toBeGreaterThan(before.length);
  for (const [at, id] of all.entries()) expect(await idsOf(opened, "talk", id)).toEqual(all.slice(at + 1));
});

it("a reader that follows a session gets each event once while its server is killed and started again", async () => {
  const opened = await openFleet();
  await fleet.ok(["create", "--user", "alice", "--id", "killed", "--prompt", "one"]);
  const reader = follow(opened, "killed");
  for (const text of ["two", "three"]) {
    process.kill((await fleet.record("alice")).process?.pid ?? 0, "SIGKILL");
    await fleet.ok(["send", "killed", text, "--user", "alice"]);
  }
  await eventually("all events", async () => reader.ids.length === (await recordedIds("killed")).length);
  expect(reader.ids).toEqual(await recordedIds("killed"));
  await reader.end();
});

it.each(["followEvents", "followTranscript"] as const)(
  "%s ends at once when the caller calls return() while the iterator waits for the next value",
  async (name) => {
    const opened = await openFleet();
    const id = unused("idle");
    await plant(id, started() + prompt() + answer());
    const values = opened.sessions[name](id, { ...ALICE, follow: true });
    for (let count = name === "followEvents" ? 3 : 2; count > 0; count--)
      expect((await values.next()).done).toBe(false);
    const waiting = values.next();
    await values.return();
    expect(await waiting).toEqual({ done: true, value: undefined });
  },
);

it("a follower misses and repeats no event when a half-written last line is removed from the history", async () => {
  const opened = await openFleet();
  const path = await plant("torn", started() + prompt());
  const whole = readFileSync(path).length;
  const reader = follow(opened, "torn");
  await eventually("two events", () => reader.ids.length === 2);
  const cut = answer("cut short").slice(0, -20);
  appendFileSync(path, cut);
  await new Promise((resolve) => setTimeout(resolve, 600)); // long enough for several polls of the reader
  truncateSync(path, whole);
  appendFileSync(path, answer("whole"));
  await eventually("the third event", () => reader.ids.length > 2);
  expect(reader.ids).toEqual(await recordedIds("torn"));
  await reader.end();
});

it("followEvents fails if the history does not have `after`, or loses the event that it yielded last", async () => {
  const opened = await openFleet();
  const path = await plant("rewound", started() + prompt() + answer());
  const missing = { code: "FLEET_USAGE_INVALID", message: 'The history of session "rewound" has no event "x".' };
  await expect(idsOf(opened, "rewound", "x")).rejects.toMatchObject(missing);
  const reader = follow(opened, "rewound");
  await eventually("three events", () => reader.ids.length === 3);
  writeFileSync(path, started() + prompt());
  await expect(reader.done).rejects.toMatchObject({ code: "FLEET_USAGE_INVALID" });
});

it("followEvents leaves out lines that cannot be read, and warns once", async () => {
  const opened = await openFleet();
  await plant("damaged", `${started()}{"type":\nnull\n${prompt()}`);
  expect(await idsOf(opened, "damaged")).toHaveLength(2);
  expect(opened.takeWarnings()).toEqual([
    'The history of session "damaged" cannot be read in 2 lines, which are left out.',
  ]);
});

it("followEvents refuses another user as if the session did not exist", async () => {
  const opened = await openFleet();
  await plant("private", started());
  const others = opened.sessions.followEvents("private", { user: "bob" });
  await expect(others.next()).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
});
