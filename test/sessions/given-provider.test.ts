import { existsSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeEach, expect, it, onTestFinished } from "vitest";
import { ModelProvider } from "../../src/providers/provider.js";
import { giveProvider, hasProvider, noteOpened } from "../../src/sessions/memory/open-notes.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const record = sessionRecord("one");
const address = (port: number) => ({ type: "openai" as const, baseUrl: `http://127.0.0.1:${port}/v1` });
const taken = async () => await Promise.resolve();

let server = serverRecord("s1", {});
beforeEach(async () => {
  const home = join(await temporaryRoot(), "servers", "s1", "home");
  mkdirSync(dirname(home), { recursive: true });
  server = serverRecord("s1", { home, launchId: "first" });
});

/** The session's provider in one process. `kept` is the process's use of the session. */
function process() {
  const runtime = { path: null, args: [], env: [] };
  const provider = new ModelProvider({ provider: null, runtime }, { env: {}, networkFolder: "/nowhere" });
  const kept = provider.keep(record.id);
  onTestFinished(() => kept[Symbol.dispose]());
  return {
    kept,
    forget: () => provider.noteGiven(record.id, null),
    give: async (port: number, take: () => Promise<unknown> = taken) =>
      await giveProvider({ provider }, { record, server }, address(port), take),
    has: (port: number) => hasProvider({ provider }, { record, server }, address(port)),
  };
}

it("a server has the provider of a process from the moment when the process gave it", async () => {
  const one = process();
  expect(one.has(1)).toBe(false);
  await one.give(1, async () => await Promise.resolve(expect(one.has(1)).toBe(false)));
  expect([one.has(1), one.has(2)]).toEqual([true, false]);
});

it("a server no longer has a process's provider once another process has given its own", async () => {
  const [one, two] = [process(), process()];
  await one.give(1);
  await two.give(2);
  expect([one.has(1), two.has(2)]).toEqual([false, true]);
  await one.give(1);
  expect([one.has(1), two.has(2)]).toEqual([true, false]);
});

it("a server has the provider of neither process if both gave theirs at the same time", async () => {
  const [one, two] = [process(), process()];
  await one.give(1, async () => await two.give(2));
  expect([one.has(1), two.has(2)]).toEqual([false, false]);
});

it.each<[string, (one: ReturnType<typeof process>) => unknown]>([
  ["the session was loaded again", () => noteOpened(server, record.id)],
  ["the server was started again", () => Object.assign(server, { launchId: "second" })],
  ["the process ended its last use of the session", ({ kept }) => kept[Symbol.dispose]()],
  ["a turn of the process failed", ({ forget }) => forget()],
  [
    "the server may not have taken the next provider",
    async ({ give }) =>
      await expect(give(2, async () => await Promise.reject(new Error("gone")))).rejects.toThrow("gone"),
  ],
])("a process gives its provider again after %s", async (_, change) => {
  const one = process();
  await one.give(1);
  expect(one.has(1)).toBe(true);
  await change(one);
  expect(one.has(1)).toBe(false);
});

it("a process that no longer uses the session does not remember what it gave", async () => {
  const one = process();
  one.kept[Symbol.dispose]();
  await one.give(1);
  expect(one.has(1)).toBe(false);
});

it("on a full disk, a process gives its provider, but does not remember that", async () => {
  const one = process();
  await one.give(1);
  const note = join(dirname(server.home), "open", record.id);
  rmSync(note);
  symlinkSync("/dev/full", note);
  await one.give(1, async () => await Promise.resolve(expect(existsSync(note)).toBe(false)));
  expect(one.has(1)).toBe(false);
  await one.give(1);
  expect(one.has(1)).toBe(true);
});
