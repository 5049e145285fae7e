import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { LimitEvents } from "../../src/accounts/limits.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import type { Store } from "../../src/store/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "copilotfleet-limit-events-"));
});
afterEach(async () => await removeFolder(root));

type Noted = Parameters<NonNullable<Parameters<typeof LimitEvents.of>[0]["events"]>["note"]>[0];

function opened(): { store: Store; noted: Noted[]; events: LimitEvents } {
  const noted: Noted[] = [];
  const store = openFileStore(root);
  return { store, noted, events: LimitEvents.of({ store, events: { note: (event) => void noted.push(event) } }) };
}

it("LimitEvents logs a nearly used-up budget once per period, even if several processes notice it", async () => {
  const [one, other] = [opened(), opened()];
  const near = { limit: "tokensPerDay", max: 100, used: 80, from: 1 } as const;
  for (const { events } of [one, other, one]) await events.near("alice", near);
  await other.events.near("alice", { ...near, from: 2 });
  await one.events.near("bob", near);
  expect([...one.noted, ...other.noted].map(({ type, user, detail }) => [type, user, detail])).toEqual([
    ["limit.near", "alice", "tokensPerDay: 80 of 100 used"],
    ["limit.near", "bob", "tokensPerDay: 80 of 100 used"],
    ["limit.near", "alice", "tokensPerDay: 80 of 100 used"],
  ]);
});

it("if the store fails, LimitEvents fails no turn, and logs the nearly used-up budget at the next turn", async () => {
  const { store, events, noted } = opened();
  const near = { limit: "tokensPerDay", max: 100, used: 80, from: 1 } as const;
  vi.spyOn(store.limits, "isFirst").mockRejectedValueOnce(new Error("the disk is full"));
  await events.near("alice", near);
  expect(noted).toEqual([]);
  await events.near("alice", near);
  expect(noted.map(({ type }) => type)).toEqual(["limit.near"]);
});

it("LimitEvents logs the first refusal in a minute for each user and limit, and only counts further refusals", () => {
  const { events, noted } = opened();
  for (let count = 0; count < 50; count++) events.reached("alice", "turnsPerMinute", 5);
  events.reached("alice", "sessions", 5);
  events.reached("bob", "turnsPerMinute", 5);
  expect(noted.map(({ user, reason, outcome }) => [user, reason, outcome])).toEqual([
    ["alice", "turnsPerMinute", "refused"],
    ["alice", "sessions", "refused"],
    ["bob", "turnsPerMinute", "refused"],
  ]);
});
