import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { findRuntime } from "../../src/runtime/launch/versions.js";
import { eventually } from "../fixtures/eventually.js";
import {
  errorOf,
  expectConsistent,
  type FaultFleet,
  fake,
  faultFleet,
  openFolder,
  rounds,
} from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { heldModel } from "../fixtures/fleets/turns.js";
import { isRunning } from "../fixtures/processes.js";

async function spawned(fleet: FaultFleet, users: readonly string[]): Promise<Map<string, number | null>> {
  const pids = new Map<string, number | null>();
  for (const user of users) pids.set(user, (await fleet.spawn(user)).pid);
  return pids;
}

async function pidsNow(fleet: FaultFleet): Promise<Map<string, number | null>> {
  return new Map((await fleet.ps()).map(({ user, pid }) => [user ?? "", pid]));
}

async function library(fleet: FaultFleet): Promise<Fleet> {
  const opened = await Fleet.open({ env: fleet.env });
  onTestFinished(() => opened.close());
  return opened;
}

it.each([1, 3])("a rolling restart loses no turn of busy clients with --max-unavailable %i", async (unavailable) => {
  const fleet = await faultFleet(FAST_HEALTH);
  const users = ["alice", "bob", "carol"];
  const before = await spawned(fleet, users);
  const serving = await serve(fleet);
  const client = await library(fleet);
  for (const user of users) await fleet.json(["create", "--id", `talk-of-${user}`, "--user", user]);
  let over = false;
  const sent = new Map(users.map((user) => [user, 0]));
  const loops = users.map(async (user) => {
    for (let turn = 1; !over || turn < 5; turn++) {
      const reply = await client.sessions.use(`talk-of-${user}`, `!delay ${rounds(300, 50)} n${turn}`, {
        user,
        timeout: 30_000,
      });
      expect(reply.text).toBe(`[turn ${turn}] n${turn}`);
      sent.set(user, turn);
    }
  });
  const all = Promise.all(loops);
  await eventually("first turns", () => [...sent.values()].every((turns) => turns >= 2));
  const result = await fleet.json<{ stopped: { outcome: string; cut: string[] }[] }>([
    "restart",
    "--all",
    "--rolling",
    "--max-unavailable",
    String(unavailable),
  ]);
  over = true;
  await all;
  expect(result.stopped).toHaveLength(3);
  for (const stopped of result.stopped) expect(stopped).toMatchObject({ outcome: "drained", cut: [] });
  const after = await pidsNow(fleet);
  for (const user of users) expect(after.get(user)).not.toBe(before.get(user));
  expect([...before.values()].filter((pid) => isRunning(pid ?? 0))).toEqual([]);
  expect(await serving.metric("server_restarts_total")).toBe(0);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("a rolling restart drains the first server alone, and then at most --max-unavailable servers at once", async () => {
  const model = await heldModel();
  const fleet = await faultFleet({ ...model.env, COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
  const users = ["a", "b", "c", "d", "e"];
  const before = await spawned(fleet, users);
  // Each server is in a turn that lasts until the test has seen how many servers are draining at once.
  const turns = users.map((user) =>
    fleet.json<{ reply: string }>([
      "create",
      "--id",
      `of-${user}`,
      "--user",
      user,
      "--prompt",
      `!hold turn-of-${user}.`,
    ]),
  );
  await eventually("the turns", () => model.held() === users.length, 40_000);
  const { done } = fleet.start(["restart", "--all", "--rolling", "--max-unavailable", "2", "--json"]);
  let ended = false;
  void done.then(() => (ended = true));
  const seen: number[] = [];
  const released = new Set<string | null>();
  let changedAt = performance.now();
  while (!ended) {
    const servers = Object.values((await fleet.registry()).servers);
    const draining = servers.filter(({ state }) => state === "draining");
    const expected = released.size === 0 ? 1 : Math.min(2, users.length - released.size);
    if (seen.at(-1) !== draining.length) {
      seen.push(draining.length);
      changedAt = performance.now();
    }
    // This is long enough for more servers to start draining, if that were possible.
    if (draining.length >= expected && performance.now() - changedAt > 700) {
      for (const { user } of draining) {
        model.release(`turn-of-${user}.`);
        released.add(user);
      }
    }
    await delay(10);
  }
  expect(await done).toMatchObject({ code: 0 });
  for (const [index, turn] of turns.entries()) {
    expect(await turn).toMatchObject({ reply: `[turn 1] turn-of-${users[index]}.` });
  }
  expect(Math.max(...seen), seen.join()).toBeLessThanOrEqual(2);
  expect(seen.indexOf(1)).toBeGreaterThanOrEqual(0);
  // The first server is done before the next two begin.
  expect(seen.slice(0, seen.indexOf(2)), seen.join()).toEqual([0, 1, 0, 1].slice(0, seen.indexOf(2)));
  const after = await pidsNow(fleet);
  for (const user of users) expect(after.get(user)).not.toBe(before.get(user));
  await expectConsistent(fleet);
});

it("a rolling restart touches no other server when the first replacement does not start", async () => {
  const fleet = await faultFleet();
  const before = await spawned(fleet, ["alice", "bob", "carol"]);
  const result = await fleet.run(["restart", "--all", "--rolling", "--max-unavailable", "3", "--json"], {
    env: { COPILOT_CLI_PATH: fake("exits.mjs") },
  });
  expect(result.code).toBe(7);
  expect(errorOf(result)).toMatchObject({
    code: "FLEET_SERVER_EXITED",
    message: expect.stringMatching(
      /could not be replaced and keeps running as before\. 0 of 3 servers were replaced.*frobnicator/s,
    ),
  });
  expect(await pidsNow(fleet)).toEqual(before);
  await expectConsistent(fleet);
});

it("a rolling restart stops at the first replacement that does not start", async () => {
  const gate = await openFolder();
  const fleet = await faultFleet({ COPILOTFLEET_RUNTIME_ENV: "ONCE_FOLDER,ONCE_RUNTIME" });
  const before = await spawned(fleet, ["alice", "bob", "carol"]);
  const result = await fleet.run(["restart", "--all", "--rolling", "--json"], {
    env: {
      COPILOT_CLI_PATH: fake("once.sh"),
      ONCE_FOLDER: gate,
      ONCE_RUNTIME: findRuntime(null, {}).path,
      COPILOTFLEET_SANDBOX_MODE: "none", // the fake needs the folder and the real runtime
    },
  });
  expect(result.code).toBe(7);
  expect(errorOf(result).message).toMatch(
    /could not be replaced .*1 of 3 servers was replaced, and the others are unchanged/,
  );
  const after = await pidsNow(fleet);
  const changed = [...before].filter(([user, pid]) => after.get(user) !== pid).map(([user]) => user);
  expect(changed).toEqual(["alice"]);
  await expectConsistent(fleet);
});

it("each server has exactly one process after a rolling restart was killed", async () => {
  const fleet = await faultFleet();
  const users = ["alice", "bob", "carol"];
  await spawned(fleet, users);
  for (const user of users) await fleet.json(["create", "--id", `of-${user}`, "--user", user, "--prompt", "hi"]);
  for (let round = 0; round < rounds(3, 100); round++) {
    const { child, done } = fleet.start(["restart", "--all", "--rolling", "--max-unavailable", "3"]);
    const afterMs = Math.random() * 700;
    const until = performance.now() + afterMs;
    await eventually("the moment", () => performance.now() >= until);
    child.kill("SIGKILL");
    await done;
    const shown = await expectConsistent(fleet);
    expect(
      shown.map(({ state }) => state),
      `killed after ${afterMs} ms`,
    ).toEqual(["ready", "ready", "ready"]);
  }
  for (const user of users) {
    expect(await fleet.json(["send", `of-${user}`, "again", "--user", user])).toMatchObject({
      reply: "[turn 2] again",
    });
  }
});
