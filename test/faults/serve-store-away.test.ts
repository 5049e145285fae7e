import { describe, expect, it, onTestFinished } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";
import { heldModel } from "../fixtures/fleets/turns.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { CuttingProxy } from "../fixtures/store/cutting-proxy.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

/** Enough time for a few consecutive operations that each wait for Redis until their deadline, in milliseconds. */
const BOUND_MS = 60_000;
const problem = redisProblem();
if (problem !== undefined) console.warn(`the end of serve without its store is not tested: ${problem}`);

describe.skipIf(problem !== undefined)("a Redis that goes away while serve drains", () => {
  async function startRedis(): Promise<RedisServer> {
    const redis = await RedisServer.start();
    onTestFinished(() => redis.end());
    return redis;
  }

  it("serve exits with 7 and leaves its servers to the next serve when Redis goes away early in a drain", async () => {
    const redis = await startRedis();
    const url = redis.url();
    const fleet = await faultFleet({ COPILOTFLEET_STORE: url });
    const { pid } = await fleet.spawn("alice");
    const proxy = await CuttingProxy.start(redis.port);
    onTestFinished(() => proxy.end());
    const env = { COPILOTFLEET_STORE: url.replace(String(redis.port), String(proxy.port)) };
    const serving = await serve(fleet, { args: ["--json"], env });
    proxy.goAfter(/state\\?":\\?"draining/);
    using watch = new Stopwatch();
    const { code, stdout } = await serving.end();
    expect({ code, error: JSON.parse(stdout) }).toMatchObject({
      code: 7,
      error: { error: { code: "FLEET_STORE_UNAVAILABLE" } },
    });
    expect(watch.ms).toBeLessThan(BOUND_MS);
    expect(fleet.servers()).toEqual([pid]);
    const next = await serve(fleet);
    expect(await fleet.ps()).toMatchObject([{ pid, state: "ready" }]);
    expect((await next.end()).code).toBe(0);
  });

  it("a turn is still answered, and serve exits with 7, when Redis goes away while serve drains", async () => {
    const redis = await startRedis();
    const model = await heldModel();
    const fleet = await faultFleet({ COPILOTFLEET_STORE: redis.url(), ...model.env });
    await fleet.json(["create", "--user", "alice", "--id", "notes", "--prompt", "one"]);
    const [server] = await fleet.ps();
    const serving = await serve(fleet, { args: ["--json"] });
    const turn = fleet.start(["send", "notes", "!hold two", "--user", "alice"]);
    await eventually("the turn", () => model.held() === 1);
    serving.kill("SIGTERM");
    await serving.logged("draining 1 server");
    await redis.kill();
    model.release();
    using watch = new Stopwatch();
    const [{ code, stdout }, sent] = await Promise.all([serving.done, turn.done]);
    await redis.run();
    expect({ code: sent.code, stdout: sent.stdout }, sent.stderr).toEqual({ code: 0, stdout: "[turn 2] two\n" });
    expect(sent.stderr).toMatch(/^Warning: A turn in session "notes" could not be recorded: Redis .* does not answer/m);
    expect({ code, error: JSON.parse(stdout) }).toMatchObject({
      code: 7,
      error: { error: { code: "FLEET_STORE_UNAVAILABLE" } },
    });
    expect(watch.ms).toBeLessThan(BOUND_MS);
    expect(fleet.servers()).toEqual([server?.pid]);
    const next = await serve(fleet);
    expect(await fleet.json(["send", "notes", "three", "--user", "alice"])).toMatchObject({ reply: "[turn 3] three" });
    expect((await next.end()).code).toBe(0);
  });
});
