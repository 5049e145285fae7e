import { expect, it } from "vitest";
import type { FleetHosts } from "../../src/hosts/fleet-hosts.js";
import { HistoryFeeds } from "../../src/hosts/sessions/feeds.js";
import { readTranscript } from "../../src/hosts/sessions/history.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { finalStep, prompt } from "../fixtures/sessions/history.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const event = (type: string, data: object = {}) =>
  `${JSON.stringify({ id: type, parentId: null, type, timestamp: new Date().toISOString(), data })}\n`;
const PROMPT = event("user.message", { messageId: "m", content: "hi" });

/** A session whose history has these lines. `readings` counts how often the history was read. */
function sessionWith(...lines: string[]) {
  const clock = new TestClock();
  const record = sessionRecord("talk");
  const read = { readings: 0 };
  const here = {
    folderOf: async () => null,
    histories: async () => ["same"],
    history: async ({ from }: { from?: object }) => {
      read.readings++;
      const bytes = from === undefined ? Buffer.from(lines.join("")).toString("base64") : "";
      return { bytes, at: { ino: 1, offset: 1, mark: "" }, atEnd: true, fate: "there" };
    },
  };
  const hosts = { own: here, at: () => here } as unknown as FleetHosts;
  const finder = {
    find: async () => record,
    whereItIs: async (_: string, __: string, use: (...given: unknown[]) => unknown) => await use(record, null),
  };
  const context = { hosts, finder, feeds: new HistoryFeeds(hosts, clock), warn: () => undefined };
  const given = context as unknown as Parameters<typeof readTranscript>[0];
  const entries = (request: Partial<Parameters<typeof readTranscript>[2]>) =>
    readTranscript(given, "talk", { user: record.owner, ...request });
  return { clock, read, entries };
}

/** Follows the transcript of a session whose history has these lines. Returns how often it is read in 5 s. */
async function following(...lines: string[]) {
  const { clock, read, entries } = sessionWith(...lines);
  const stop = new AbortController();
  const over = (async () => {
    for await (const _ of entries({ follow: true, signal: stop.signal }));
  })();
  await expect.poll(() => read.readings).toBeGreaterThan(0);
  // The first look wakes the followers once, because it may find changes since the first reading.
  const pass = async (ms: number) => {
    for (let passed = 0; passed < ms; passed += 250) {
      clock.jump(250);
      clock.runDue();
      for (let turn = 0; turn < 5; turn++) await new Promise(setImmediate);
    }
  };
  await pass(500);
  const before = read.readings;
  await pass(5_000);
  stop.abort();
  await over;
  return read.readings - before;
}

it("a follower of a transcript reads an idle history only after changes", async () => {
  expect(await following(PROMPT)).toBe(0);
});

it("a follower of a transcript keeps reading the history while the last turn has no final event", async () => {
  const call = event("assistant.message", { content: "", toolRequests: [{ toolCallId: "t" }] });
  const unfinished = [event("assistant.turn_start"), call, event("assistant.turn_end")];
  expect(await following(PROMPT, ...unfinished)).toBeGreaterThan(5);
});

it("the last turn of a transcript can be read although it is too long together with the turn before it", async () => {
  const almostHalf = "x".repeat(8 * 1024 * 1024 - 1000);
  const { entries } = sessionWith(
    prompt({ content: almostHalf }),
    finalStep(almostHalf),
    prompt({ content: "y".repeat(5000) }),
    finalStep(),
  );
  const read: string[] = [];
  for await (const { text } of entries({ turns: 1 })) read.push(text);
  expect(read).toEqual(["y".repeat(5000), "hello"]);
});
