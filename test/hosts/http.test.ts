import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { ask } from "../http/harness.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`the HTTP API of several hosts is not tested: ${problem}`);

describe.skipIf(problem !== undefined)("the HTTP API of one host", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it("the HTTP API serves a user's sessions on another host, and shares idempotency keys with that host", async () => {
    await using model = await startHeldModel();
    await using hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "local", env: { ...model.env } });
    await hosts.serve();
    await hosts.place("alice", "h2");
    await using here = await hosts.host("h1").library();
    const { url } = await here.doors.openHttp({ listen: "127.0.0.1:0" });
    const { token } = await here.tokens.issue("alice");
    const call = async (method: string, path: string, body?: object) =>
      await ask(url, method, path, { token, ...(body === undefined ? {} : { body }) });

    const made = await call("POST", "/v1/sessions", { id: "far" });
    expect({ status: made.status, host: made.json.session?.host }).toEqual({ status: 201, host: "h2" });
    const path = "/v1/sessions/far";
    expect((await call("POST", `${path}/turns`, { prompt: "hello" })).json.reply).toBe("[turn 1] hello");
    const changed = await call("PATCH", path, { members: ["bob"], ttl: "2h" });
    expect(changed.json.session).toMatchObject({ host: "h2", members: ["bob"], ttlMs: 7_200_000 });

    const turn = call("POST", `${path}/turns`, { prompt: "!hold on" });
    await eventually("the model", () => model.held() > 0);
    expect((await call("DELETE", path)).status).toBe(409);
    expect((await call("POST", `${path}/abort`)).json).toEqual({ aborted: true });
    expect((await turn).status).toBe(200);
    expect((await call("POST", `${path}/abort`)).json).toEqual({ aborted: false });

    const { entries } = (await call("GET", `${path}/transcript?turns=2`)).json;
    expect(entries.map(({ text }: { text: string }) => text)).toContain("[turn 1] hello");
    expect((await call("GET", "/v1/sessions")).json.sessions).toMatchObject([{ id: "far", host: "h2" }]);

    await using there = await hosts.host("h2").library();
    const urls = [url, (await there.doors.openHttp({ listen: "127.0.0.1:0" })).url];
    const atBoth = async (path: string, key: string, body: object) =>
      await Promise.all(
        [...urls, ...urls].map(async (each) => {
          const reply = await ask(each, "POST", path, { token, body, headers: { "Idempotency-Key": key } });
          expect(reply.status, reply.text).toBeLessThan(300);
          return reply.json;
        }),
      );
    const turns = await atBoth(`${path}/turns`, "turn", { prompt: "only once" });
    expect(new Set(turns.map((each) => each.turn)).size).toBe(1);
    expect(model.asked("only once")).toBe(1);
    const sessions = await atBoth("/v1/sessions", "session", { ephemeral: true });
    const ids = new Set(sessions.map((each) => each.session.id));
    expect(ids.size).toBe(1);
    for (const id of ids) expect((await call("DELETE", `/v1/sessions/${id}`)).status).toBe(204);

    expect((await call("DELETE", path)).status).toBe(204);
    expect((await call("GET", path)).status).toBe(404);
  });
});

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
