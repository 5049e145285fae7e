import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { signalAll, statusOf } from "../fixtures/processes.js";

/** Longer than all deadlines of the settings below. */
const AWAY_MS = 4_500;
const USERS = ["alice", "bob"];
/** With these settings, one failed probe ends a server. The times are so long that no probe fails on a busy machine. */
const STRICT = {
  COPILOTFLEET_HEALTH_INTERVAL: "3s",
  COPILOTFLEET_HEALTH_TIMEOUT: "3s",
  COPILOTFLEET_HEALTH_FAILURES: "1",
};

const BLOCKER = fileURLToPath(new URL("../fixtures/programs/blocked-loop.cjs", import.meta.url));

async function servers(fleet: FaultFleet): Promise<number[]> {
  const pids: number[] = [];
  for (const user of USERS) pids.push((await fleet.spawn(user)).pid ?? 0);
  return pids;
}

function stop(pids: readonly number[]): Promise<unknown> {
  for (const pid of pids) process.kill(pid, "SIGSTOP");
  return eventually("the pause", () => pids.every((pid) => statusOf(pid).state === "T"));
}

/** Waits for `forMs` milliseconds. No event shows that a suspension was long enough, only the clock. */
async function away(forMs = AWAY_MS): Promise<void> {
  const until = performance.now() + forMs;
  await eventually("the end of the pause", () => performance.now() > until);
}

describe("a serve that ends a server after one failed probe", () => {
  const fleet = new FaultFleet(STRICT);
  let serving: Serving;
  beforeAll(async () => {
    serving = await serve(fleet, { env: { NODE_OPTIONS: `--require ${BLOCKER}`, BLOCK_MS: String(AWAY_MS) } });
  });
  afterAll(() => fleet.end());

  /** Runs `work`, which suspends processes. Expects that serve has restarted no server, and that all servers answer. */
  async function expectSameAfter(work: (pids: readonly number[]) => Promise<void>): Promise<void> {
    const pids = await servers(fleet);
    const isWatched = (pid: number) =>
      serving.log().some(({ msg, serverPid }) => serverPid === pid && msg.startsWith("watching"));
    await eventually("the monitors", () => pids.every(isWatched));
    const from = serving.log().length;
    const restarts = await serving.metric("server_restarts_total");
    try {
      await work(pids);
    } finally {
      signalAll([serving.pid, ...pids], "SIGCONT");
    }
    await probed(serving);
    for (const [index, user] of USERS.entries()) {
      expect(await fleet.record(user)).toMatchObject({ state: "ready", process: { pid: pids[index] }, failure: null });
    }
    expect(await serving.metric("server_restarts_total")).toBe(restarts);
    const troubles = serving.log().slice(from);
    expect(troubles.filter(({ msg }) => /hung|ended by itself/.test(msg))).toEqual([]);
    expect(await serving.readyz()).toMatchObject({ status: 200 });
    expect(await serving.healthz()).toMatchObject({ status: 200 });
    await expectConsistent(fleet);
  }

  it.each(["servers resume first", "serve resumes first"])(
    "serve restarts no server after the whole machine was suspended (%s)",
    async (order) => {
      await expectSameAfter(async (pids) => {
        await stop(pids);
        // The servers do not answer now. So after this wait, serve is usually suspended in the middle of a probe.
        await away(1_500);
        await stop([serving.pid]);
        await away();
        signalAll(order === "serve resumes first" ? [serving.pid, ...pids] : [...pids, serving.pid], "SIGCONT");
      });
    },
  );

  it("serve restarts no server after serve alone was suspended for a while", async () => {
    await expectSameAfter(async () => {
      await stop([serving.pid]);
      await away();
      serving.kill("SIGCONT");
    });
  });

  it("serve restarts no server after its own event loop was blocked for a while", async () => {
    await expectSameAfter(async () => {
      serving.kill("SIGUSR2");
      await eventually("the standstill", async () => {
        const answer = fetch(`http://${serving.address}/healthz`, { signal: AbortSignal.timeout(AWAY_MS / 5) });
        return await answer.then(
          () => false,
          () => true,
        );
      });
    });
  });
});

/** Waits until each server was probed twice more, successfully. */
async function probed(serving: Serving): Promise<void> {
  const good = async () => await serving.metric("probes_total", { outcome: "ok" });
  const before = await good();
  await eventually("more probes", async () => (await good()) >= before + 2 * USERS.length, 40_000);
}

it("after serve itself was suspended, it still ends a server that hangs", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const pids = await servers(fleet);
  const serving = await serve(fleet);
  await stop([serving.pid, pids[0] ?? 0]);
  await away();
  serving.kill("SIGCONT");
  await serving.logged(/ hung and was ended/);
  const again = await eventually("another process", async () => {
    const { state, process: found } = await fleet.record("alice");
    return state === "ready" && found?.pid !== pids[0] ? found : undefined;
  });
  expect(again.pid).not.toBe(pids[0]);
  expect(await serving.metric("server_restarts_total", { reason: "hang" })).toBe(1);
  expect(await serving.metric("server_restarts_total")).toBe(1);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});
