import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, it, vi } from "vitest";
import { effectiveLimits, LimitEvents } from "../../src/accounts/limits.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const NONE = {
  ...{ turnsPerMinute: null, concurrentTurns: null, sessions: 1000, connections: 16 },
  ...{ tokensPerDay: null, tokensPerMonth: null },
};
const commands = testFleet();
let fleet: Fleet;
beforeAll(async () => {
  const limits = { default: { tokensPerDay: 1000 }, groups: { interns: { tokensPerDay: 100, sessions: null } } };
  fleet = await Fleet.open({ env: commands.env, cwd: commands.folder, config: { limits } });
});
afterAll(async () => await fleet.close());

const configured = {
  default: NONE,
  total: { connections: null, sessions: null },
  groups: { few: { sessions: 1, concurrentTurns: 2 }, many: { sessions: 9 }, all: { sessions: null } },
};

it.each<[string, string[], { sessions?: number | null }, number | null, string]>([
  ["the default", [], {}, 1000, "default"],
  ["the default, because the configuration does not have the group", ["gone", "toString"], {}, 1000, "default"],
  ["that of the group, although it is lower", ["few"], {}, 1, "group:few"],
  ["the highest of several groups", ["few", "many"], {}, 9, "group:many"],
  ["no limit, because one of the groups has none", ["all", "many", "few"], {}, null, "group:all"],
  ["the user's own, although that of the group is higher", ["many"], { sessions: 3 }, 3, "user"],
  ["no limit, because the user has none", ["many"], { sessions: null }, null, "user"],
])("the limit in force is %s", (_, groups, own, max, source) => {
  const { limits, sources } = effectiveLimits(configured, { user: "alice", limits: own, groups });
  expect({ max: limits.sessions, source: sources.sessions }).toEqual({ max, source });
  expect(sources.concurrentTurns).toBe(groups.includes("few") ? "group:few" : "default");
});

it("fleet.limits sets, shows and clears limits of one user, and leaves the other limits and users alone", async () => {
  const before = await fleet.limits.get("alice");
  expect(before).toMatchObject({ user: "alice", groups: [], limits: { ...NONE, tokensPerDay: 1000 } });
  expect(before.used).toMatchObject({ sessions: 0 });
  await fleet.limits.set("alice", { turnsPerMinute: 5, tokensPerDay: "unlimited" });
  const set = await fleet.limits.set("alice", { concurrentTurns: 2, turnsPerMinute: "default" });
  expect(set.limits).toEqual({ ...NONE, concurrentTurns: 2 });
  expect(set.sources).toMatchObject({ turnsPerMinute: "default", concurrentTurns: "user", tokensPerDay: "user" });
  expect((await fleet.limits.get("bob")).limits.tokensPerDay).toBe(1000);
  expect(await fleet.limits.clear("alice")).toEqual(before);
});

it("fleet.limits refuses limits that do not exist, and numbers that cannot be limits", async () => {
  for (const limits of [{ turns: 5 }, { sessions: 0 }, { sessions: 1.5 }, { sessions: "5" }, 5])
    await expect(fleet.limits.set("alice", limits as object)).rejects.toMatchObject({ code: "FLEET_USAGE_INVALID" });
});

it("limit set, show and clear print the same as the library returns, and need a user and a limit", async () => {
  const set = await commands.json(["limit", "set", "--user", "carol", "--sessions", "7", "--connections", "unlimited"]);
  expect(set).toMatchObject({ user: "carol", limits: { sessions: 7, connections: null } });
  expect(await commands.json(["limit", "show", "-u", "carol"])).toEqual(set);
  expect(await commands.ok(["limit", "show", "-u", "carol"])).toMatch(/^sessions +0 +7 +limit set$/m);
  await commands.ok(["limit", "set", "--user", "carol", "--connections", "default"]);
  expect(await commands.json(["limit", "show", "-u", "carol"])).toMatchObject({ limits: { connections: 16 } });
  expect(await commands.json(["limit", "clear", "-u", "carol"])).toMatchObject({ sources: { sessions: "default" } });
  for (const args of [["set", "-u", "carol"], ["show"], ["set", "-u", "carol", "--sessions", "0"]])
    expect(await commands.run(["limit", ...args])).toMatchObject({ code: 2 });
});

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "copilotfleet-limit-events-"));
});
afterEach(async () => await removeFolder(root));

type Noted = Parameters<NonNullable<Parameters<typeof LimitEvents.of>[0]["events"]>["note"]>[0];

function opened(): { store: Store; noted: Noted[]; events: LimitEvents } {
  const noted: Noted[] = [];
  const store = openStore("file", root);
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
