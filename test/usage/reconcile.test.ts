import { randomUUID } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { sha256 } from "../../src/config/values/text.js";
import { Pseudonyms } from "../../src/events/pseudonyms.js";
import { NO_USAGE, type UsagePart } from "../../src/model/usage/usage.js";
import { HistoryTotals, lastUnloaded, missingLines } from "../../src/serve/upkeep/reconcile-usage.js";
import type { Store } from "../../src/store/ports.js";
import { eventually } from "../fixtures/eventually.js";
import { found } from "../fixtures/found.js";
import { unused } from "../fixtures/sessions/unused.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";
import { DoorFleet } from "../gateway/harness.js";

const NOTHING = { inputTokens: null, outputTokens: null, cacheReadTokens: null, credits: null };
const SESSION = { id: "canary", owner: "ann", turns: 3 };
const unloaded = (requests: number, inputTokens: number) => ({
  atMs: 1_000,
  models: new Map([["gpt-5", { ...NOTHING, requests, inputTokens }]]),
});

it("missingLines returns the usage that the ledger lacks for a session, or nothing if the ledger is complete", () => {
  const known: UsagePart = {
    ...NO_USAGE,
    key: SESSION.id,
    user: "bob",
    model: "gpt-5",
    turns: 3,
    requests: 2,
    inputTokens: 20,
  };
  const others = [
    { ...known, key: "t", requests: 9 },
    { ...known, model: "other", requests: 9 },
  ];
  const about = { host: "a", digest: sha256 };
  const lines = missingLines(SESSION, unloaded(4, 50), [known, ...others], about);
  expect(
    lines.map(({ outcome, user, inputTokens, outputTokens }) => [outcome, user, inputTokens, outputTokens]),
  ).toEqual([
    ["begun", "ann", null, null],
    ["begun", "ann", null, null],
    ["completed", "ann", 30, null],
  ]);
  expect(new Set(lines.map(({ id }) => id)).size).toBe(2);
  // The ids must not contain the session's id, because a purge replaces a session's id only in the field `sessionId`.
  expect(lines.map(({ id }) => id).join()).not.toContain(SESSION.id);
  expect(missingLines(SESSION, unloaded(2, 20), [known], about)).toEqual([]);
  expect(missingLines(SESSION, unloaded(1, 10), [known], about)).toEqual([]);
  expect(missingLines(SESSION, unloaded(2, 25), [known], about)).toHaveLength(1);
  // If the record counts more turns than the ledger, some turns were before the ledger began, or in another fleet.
  expect(missingLines({ ...SESSION, turns: 4 }, unloaded(9, 90), [known], about)).toEqual([]);
});

it("missingLines returns a bounded number of lines for a history in which an agent wrote absurd totals", async () => {
  const home = await temporaryRoot();
  const folder = join(home, "session-state", SESSION.id);
  await mkdir(folder, { recursive: true });
  const metrics = { requests: { count: Number.MAX_SAFE_INTEGER }, usage: {} };
  const modelMetrics = Object.fromEntries(
    Array.from({ length: 1_000 }, (_, index) => [`${index} ${"x".repeat(300)}`, metrics]),
  );
  const timestamp = new Date(1_000).toISOString();
  const event = { type: "session.shutdown", id: randomUUID(), timestamp, parentId: null, data: { modelMetrics } };
  await writeFile(join(folder, "events.jsonl"), `${JSON.stringify(event)}\n`);
  const known: UsagePart = { ...NO_USAGE, key: SESSION.id, user: "ann", model: "gpt-5", turns: 3 };
  const read = await lastUnloaded(home, SESSION.id, 0);
  expect(read).not.toBeNull();
  const lines = missingLines(SESSION, read ?? unloaded(0, 0), [known], { host: null, digest: sha256 });
  expect(lines.length).toBeGreaterThan(1_000);
  expect(lines.length).toBeLessThan(20_000);
});

let at: DoorFleet;
beforeAll(async () => {
  at = await DoorFleet.open({ hasKey: false });
});
afterAll(async () => await at[Symbol.asyncDispose]());

const reconcile = async (totals = new HistoryTotals(), store: Store = at.store) => {
  const { servers } = await at.store.registry.read();
  const about = { store, config: at.fleet.config, host: null, stateRoot: at.fleet.stateRoot };
  return await totals.reconcile(about, Object.values(servers));
};

it("reconcile adds requests that bypassed the fleet to the ledger, from the runtime's totals of several loads", async () => {
  const user = unused("ann");
  const id = unused("totals");
  const session = await at.fleet.sessions.create({ user, sessionId: id });
  await at.fleet.sessions.send(session, "one");
  await at.fleet.sessions.leave(session);
  await at.fleet.sessions.use(id, "two", { user });
  const { home } = await at.serverOf(user);
  const requestsIn = async () => (await lastUnloaded(home, id, 0))?.models.get("gpt-5")?.requests;
  await eventually("the totals of both turns", async () => (await requestsIn()) === 2);
  expect(await reconcile()).toBe(0);

  // A client that connects to the server directly bypasses the fleet.
  const client = await at.fleet.clients.connect(user);
  const direct = await client.resumeSession(id, {
    onPermissionRequest: () => ({ kind: "reject" }),
    provider: { type: "openai", wireApi: "completions", baseUrl: at.model.baseUrl, apiKey: "direct" },
    model: "gpt-5",
  });
  await direct.sendAndWait("three");
  await direct.disconnect();
  await eventually("the totals of all turns", async () => (await requestsIn()) === 3);
  const totals = new HistoryTotals();
  const read = async () => await Promise.reject(new Error("no answer"));
  const away = { ...at.store, usage: { ...at.store.usage, read } };
  await expect(reconcile(totals, away)).rejects.toThrow("no answer");
  expect(await reconcile(totals), "after a failure").toBe(1);
  // The added line's id is a pseudonym, so that nobody can find the session's name by guessing, even after a purge.
  const { of } = Pseudonyms.ofExisting(at.fleet.stateRoot);
  const atMs = (await lastUnloaded(home, id, 0))?.atMs;
  expect(found(join(at.fleet.stateRoot, "usage"), [of(JSON.stringify([id, atMs, "gpt-5", 0]))])).not.toEqual([]);
  expect(await reconcile()).toBe(0);
  const [part] = await at.store.usage.read({ from: 0, to: Date.now() + 60_000, by: "session", user });
  expect(part).toMatchObject({ key: id, turns: 2, requests: 3, inputTokens: 3, outputTokens: 3 });
});
