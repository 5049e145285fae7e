import { describe, expect, it, onTestFinished } from "vitest";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { unused } from "../fixtures/sessions/unused.js";
import { serverRecord } from "../fixtures/store/store-records.js";

const fleet = testFleet({ COPILOTFLEET_ISOLATION: "shared", COPILOTFLEET_POOL_SERVERS: "3" });
const route = async (...args: string[]) => await fleet.json<Record<string, unknown>>(["route", ...args]);

describe("route", () => {
  it("route prints where a user would be placed and why, and starts nothing", async () => {
    const first = await route("--user", "ann");
    expect(first).toEqual({
      user: "ann",
      isolation: "shared",
      host: null,
      strategy: "sticky",
      serverId: expect.stringMatching(/^shared-[123]$/),
      reason: "it has the highest score for this user among 3",
      server: null,
      pool: { state: "open", reason: null, drainedAt: null },
    });
    expect(await route("--user", "ann")).toEqual(first);
    expect(await fleet.json(["ps"])).toMatchObject({ servers: [] });
    expect(await route("--user", "ann", "--strategy", "least-loaded")).toMatchObject({ serverId: "shared-1" });
    expect(await route("--user", "ann", "--strategy", "round-robin")).toMatchObject({
      serverId: "shared-1",
      reason: "it is next in turn, after 0 placements",
    });
    expect(await fleet.ok(["route", "--user", "ann"])).toMatch(
      /^USER +SERVER +URL +STATE +REASON\nann +shared-\d +- +stopped +it has/,
    );
  });

  it("route prints the user's own server under per-user isolation", async () => {
    const env = { COPILOTFLEET_ISOLATION: "per-user" };
    const shown = await fleet.json(["route", "--user", "ann"], { env });
    expect(shown).toMatchObject({
      isolation: "per-user",
      strategy: null,
      serverId: expect.stringMatching(/^ann-/),
      server: null,
    });
  });

  it("route keeps a user on the recorded server when servers are added, until the recorded server is gone", async () => {
    const user = unused("ben");
    await fleet.ok(["create", "--user", user]);
    const placed = await route("--user", user);
    expect(placed).toMatchObject({ reason: "the user was placed there before", server: { state: "ready" } });
    const store = openStore("file", fleet.root);
    const added = Array.from({ length: 30 }, (_, index) => `shared-${10 + index}`);
    onTestFinished(async () => {
      await store.registry.update(({ servers }) => {
        for (const id of added) delete servers[id];
      });
    });
    await store.registry.update(({ servers }) => {
      for (const id of added) {
        servers[id] = {
          ...serverRecord(id),
          isolation: "shared",
          user: null,
          state: "stopped",
          process: null,
          port: null,
        };
      }
    });
    expect(await route("--user", user)).toMatchObject({ serverId: placed.serverId });
    const fresh = await Promise.all(
      ["c1", "c2", "c3", "c4", "c5", "c6"].map(async (each) => await route("--user", each)),
    );
    expect(fresh.some(({ serverId }) => /-\d\d$/.test(String(serverId)))).toBe(true);
    await store.placements.record(user, await store.placements.read(user), { serverId: "shared-99" });
    expect(await route("--user", user)).toMatchObject({ reason: expect.stringContaining("highest score") });
  });

  it.each([
    [["route"], "--user"],
    [["route", "--user", "a", "--plan"], "--plan"],
    [["route", "--user", "a/b"], '--user "a/b"'],
    [["route", "--user", "a", "--strategy", "random"], '--strategy is "random"'],
  ])("the command line %j is refused", async (args, message) => {
    expect((await fleet.refusal(2, args)).message).toContain(message);
  });
});
