import { expect, it } from "vitest";
import type { ServerView } from "../../src/servers/server.js";
import { errorOf, expectConsistent, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";

const APART = { ownProcess: true };
const MANY = Array.from({ length: rounds(8, 16) }, (_, index) => index + 1);

it(`${MANY.length} users who spawn at once get one server each`, async () => {
  const fleet = await faultFleet();
  const servers = await Promise.all(MANY.map((user) => fleet.spawn(`user${user}`, APART)));
  expect(new Set(servers.map(({ id }) => id)).size).toBe(MANY.length);
  expect(new Set(servers.map(({ port }) => port)).size).toBe(MANY.length);
  expect(new Set(servers.map(({ pid }) => pid)).size).toBe(MANY.length);
  for (const { port } of servers) {
    expect(port).toBeGreaterThanOrEqual(fleet.ports.from);
    expect(port).toBeLessThan(fleet.ports.from + MANY.length);
  }
  const shown = await expectConsistent(fleet);
  expect(shown.map(({ id, pid, port, state }) => ({ id, pid, port, state }))).toEqual(
    expect.arrayContaining(servers.map(({ id, pid, port }) => ({ id, pid, port, state: "ready" }))),
  );
  expect(shown).toHaveLength(MANY.length);
});

it(`${MANY.length} spawn commands for one user at once start a single server`, async () => {
  const fleet = await faultFleet();
  const results = await Promise.all(
    MANY.map(() => fleet.json<{ server: ServerView; created: boolean }>(["spawn", "--user", "alice"], APART)),
  );
  expect(results.filter(({ created }) => created)).toHaveLength(1);
  expect(new Set(results.map(({ server }) => `${server.pid}:${server.port}:${server.startedAt}`)).size).toBe(1);
  expect(fleet.servers()).toEqual([results[0]?.server.pid]);
  await expectConsistent(fleet);
});

it("spawn, stop, restart and ps of one server at once all succeed and leave at most one process", async () => {
  const fleet = await faultFleet();
  await fleet.spawn("alice");
  const commands = ["spawn", "stop", "restart", "spawn", "ps", "stop", "spawn", "restart"];
  const results = await Promise.all(
    commands.map((command) => fleet.run(command === "ps" ? ["ps"] : [command, "--user", "alice"], APART)),
  );
  expect(results.map(({ code, stderr }) => ({ code, stderr }))).toEqual(commands.map(() => ({ code: 0, stderr: "" })));
  await expectConsistent(fleet);
  expect(fleet.servers().length).toBeLessThanOrEqual(1);
});

it("three ports go to three of five users who spawn at once, and the others get a clear error", async () => {
  const fleet = await faultFleet({}, { portCount: 3 });
  const results = await Promise.all(
    MANY.slice(0, 5).map((user) => fleet.run(["spawn", "--json", "--user", `u${user}`], APART)),
  );
  const refused = results.filter(({ code }) => code !== 0);
  expect(refused.map(({ code }) => code)).toEqual([6, 6]);
  for (const result of refused) {
    expect(errorOf(result)).toMatchObject({ code: "FLEET_PORTS_EXHAUSTED" });
    expect(errorOf(result).message).toContain(`${fleet.ports.from} and ${fleet.ports.to}`);
  }
  // The users who were refused leave no record.
  const records = Object.values((await fleet.registry()).servers);
  expect(records.map(({ state, failure }) => failure ?? state)).toEqual(["ready", "ready", "ready"]);
  await expectConsistent(fleet);
});
