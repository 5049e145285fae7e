import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`hosts whose clocks differ are not tested: ${problem}`);

const skewedBy = (ms: number) =>
  `--import=data:text/javascript,const%20now=Date.now;Date.now=()=>now()+(${ms})`.replaceAll("+", "%2B");

describe.skipIf(problem !== undefined)("a host whose clock differs from the others'", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  // The tokens that hosts issue for each other are valid for one minute, which is less than the skew.
  it.each([
    ["is ahead", 300_000],
    ["is behind", -300_000],
  ])("serves another host's calls and makes its own when its clock %s by five minutes", async (_, ms) => {
    await using hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "shared" });
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    h2.env.NODE_OPTIONS = skewedBy(ms);
    await hosts.serve();
    const { store } = hosts;
    for (const [user, host] of Object.entries({ ann: "h1", bob: "h2" })) {
      await store.placements.record(user, await store.placements.read(user), { host, serverId: null });
    }
    for (const [user, from] of [
      ["bob", h1],
      ["ann", h2],
    ] as const) {
      await from.create(user, `of-${user}-${ms}`);
      expect(await from.send(user, `of-${user}-${ms}`, "one")).toBe("[turn 1] one");
      const listed = await from.run(["ps", "--json"]);
      expect(listed).toMatchObject({ code: 0, stderr: "" });
    }
    expect(h1.output + h2.output).not.toContain("token-refused");
  });
});
