import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`hosts whose clocks differ are not tested: ${problem}`);

const skewedBy = (ms: number) =>
  `--import=data:text/javascript,const%20now=Date.now;Date.now=()=>now()+(${ms})`.replaceAll("+", "%2B");

/** How many tests have started, including retries of a failed test. */
let tries = 0;
/** A name for a user or session that no earlier test and no earlier attempt of this test has used. */
const fresh = (name: string) => `${name}-${tries}`;

describe.skipIf(problem !== undefined)("a host whose clock differs from the others'", () => {
  let redis: RedisServer;
  let hosts: TestHosts;
  beforeAll(async () => {
    redis = await RedisServer.start();
    hosts = new TestHosts({ redis, names: ["right", "ahead", "behind"], storage: "shared" });
    // The tokens that hosts issue for each other are valid for one minute, which is less than the skew.
    hosts.host("ahead").env.NODE_OPTIONS = skewedBy(300_000);
    hosts.host("behind").env.NODE_OPTIONS = skewedBy(-300_000);
    await hosts.serve();
  });
  afterAll(async () => {
    await hosts[Symbol.asyncDispose]();
    await redis.end();
  });
  beforeEach(() => {
    tries++;
  });

  it.each(["ahead", "behind"])(
    "a host whose clock is five minutes %s serves the calls of another host and makes its own calls",
    async (name) => {
      const [right, skewed] = [hosts.host("right"), hosts.host(name)];
      await hosts.place(fresh("ann"), "right");
      await hosts.place(fresh("bob"), name);
      for (const [user, from] of [
        [fresh("bob"), right],
        [fresh("ann"), skewed],
      ] as const) {
        // Commands of the skewed host need their own process, because this process has the right clock.
        const options = { ownProcess: from === skewed };
        const made = await from.json(["create", "--user", user, "--id", `of-${user}`, "--prompt", "one"], options);
        expect(made).toMatchObject({ reply: "[turn 1] one" });
        const listed = await from.run(["ps", "--json"]);
        expect(listed).toMatchObject({ code: 0, stderr: "" });
      }
      expect(right.output + skewed.output).not.toContain("token-refused");
    },
  );
});
