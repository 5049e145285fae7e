import { setTimeout as delay } from "node:timers/promises";
import { expect, it } from "vitest";
import { ownPid } from "../../src/runtime/history/session-state.js";
import type { ServerView } from "../../src/servers/server.js";
import type { Running } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, expectConsistent, type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { statusOf } from "../fixtures/processes.js";
import { seededRandom } from "../fixtures/random.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/**
 * Starts a spawn, and suspends it as soon as `when` resolves with true, while its server is recorded as starting.
 * Resolves with undefined if the spawn was too fast for that.
 */
async function suspendedSpawn(fleet: FaultFleet, when: () => boolean | Promise<boolean>): Promise<Running | undefined> {
  const started = fleet.start(["spawn", "--user", "alice", "--json"]);
  await eventually("the right moment", when);
  started.child.kill("SIGSTOP");
  await eventually("the suspension", () => ["T", "Z", undefined].includes(statusOf(started.pid).state));
  if ((await fleet.record("alice")).state === "starting" && statusOf(started.pid).state === "T") return started;
  started.child.kill("SIGCONT");
  await started.done;
  await fleet.json(["stop", "--user", "alice"]);
  return undefined;
}

async function stuckSpawn(fleet: FaultFleet, when?: () => boolean): Promise<Running> {
  const claimed = async () => Object.values((await fleet.registry()).servers).some(({ state }) => state === "starting");
  const suspended = () => suspendedSpawn(fleet, when ?? claimed);
  return await eventually("a spawn that is suspended in the middle", suspended, 30_000);
}

it("the error of a second spawn names the suspended process of the first spawn, and the first spawn succeeds once it resumes", async () => {
  const fleet = await faultFleet();
  const stuck = await stuckSpawn(fleet);
  using took = new Stopwatch();
  const second = await fleet.run(["spawn", "--user", "alice", "--wait", "700ms", "--json"]);
  expect(second.code).toBe(6);
  expect(took.ms).toBeLessThan(15_000);
  expect(errorOf(second)).toMatchObject({ code: "FLEET_SERVER_START_TIMEOUT" });
  expect(errorOf(second).message).toContain(`process ${stuck.pid}`);
  expect(await fleet.ps()).toMatchObject([{ state: "starting" }]);
  expect(fleet.servers().length).toBeLessThanOrEqual(1);
  stuck.child.kill("SIGCONT");
  const result = await stuck.done;
  expect(result).toMatchObject({ code: 0 });
  expect(JSON.parse(result.stdout)).toMatchObject({ created: true, server: { state: "ready" } });
  await expectConsistent(fleet);
});

it("stop gives up after its deadline when it waits for a suspended spawn", async () => {
  const fleet = await faultFleet();
  const stuck = await stuckSpawn(fleet);
  // A stop that waited for the configured deadline would count as hung.
  const stop = await fleet.run(["stop", "--user", "alice", "--drain-timeout", "500ms", "--json"], {
    env: { COPILOTFLEET_DRAIN_TIMEOUT: "10m" },
  });
  expect(stop.code).toBe(5);
  expect(errorOf(stop)).toMatchObject({ code: "FLEET_POOL_DRAINING" });
  expect(errorOf(stop).message).toContain(`process ${stuck.pid}`);
  stuck.child.kill("SIGCONT");
  expect(await stuck.done).toMatchObject({ code: 0 });
  await expectConsistent(fleet);
});

it("a user never gets two servers from spawns that are suspended, killed and resumed at random", async () => {
  const fleet = await faultFleet();
  const random = seededRandom("suspend spawns");
  for (let round = 0; round < rounds(3, 100); round++) {
    const spawns = [1, 2, 3, 4].map(() => fleet.start(["spawn", "--user", "alice", "--json"]));
    const troubled = spawns.slice(0, 3).map(async ({ child }) => {
      await delay(random() * 300);
      child.kill("SIGSTOP");
      await delay(random() * 400);
      child.kill(random() < 0.3 ? "SIGKILL" : "SIGCONT");
    });
    await Promise.all(troubled);
    const results = await Promise.all(spawns.map(({ done }) => done));
    expect(results.filter(({ code }) => code !== 0 && code !== null)).toEqual([]);
    const pids = results.flatMap(({ code, stdout }) =>
      code === 0 ? [(JSON.parse(stdout) as { server: { pid: number } }).server.pid] : [],
    );
    expect(new Set(pids).size).toBe(1);
    expect(fleet.servers()).toEqual([...new Set(pids)]);
    await expectConsistent(fleet);
    await fleet.json(["stop", "--user", "alice", "--force"]);
  }
});

it("a suspended spawn whose claim was taken over harms nothing when it resumes", async () => {
  const fleet = await faultFleet();
  const stuck = await stuckSpawn(fleet, () => fleet.processes().length > 0);
  const [first] = fleet.processes();
  // Remove the claim, as a process in another PID namespace would: it cannot see the process that made the claim.
  await fleet.tamper("alice", (record) => {
    record.claim = null;
  });
  const { created, server } = await fleet.json<{ created: boolean; server: ServerView }>(["spawn", "--user", "alice"]);
  expect(created).toBe(false);
  const { process: found } = await fleet.record("alice");
  // In bwrap, the server's PID inside the sandbox equals the PID of the first process outside.
  expect(found === null ? null : ownPid(found)).toBe(first);
  stuck.child.kill("SIGCONT");
  const result = await stuck.done;
  expect(result).toMatchObject({ code: 0 });
  expect(JSON.parse(result.stdout)).toMatchObject({ server: { state: "ready", pid: server.pid } });
  expect(fleet.servers()).toEqual([server.pid]);
  await expectConsistent(fleet);
});
