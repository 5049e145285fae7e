import { appendFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { RouteView } from "../../src/hosts/options.js";
import type { EvictionResult } from "../../src/sessions/memory/eviction.js";
import { eventually } from "../fixtures/eventually.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`a host that does not answer is not tested: ${problem}`);

describe.skipIf(problem !== undefined)("commands that need an answer from another host", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  /** Two hosts with a long TTL, so that a host still counts as alive while it is suspended. */
  const pair = () =>
    new TestHosts({ redis, names: ["h1", "h2"], storage: "local", env: { COPILOTFLEET_HOST_TTL: "60s" } });

  it("route and evict return the other host's answer, and fail when that host is silent or gone", async () => {
    await using hosts = pair();
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    await hosts.serve();
    await hosts.place("ann", "h1");
    await hosts.place("bob", "h2");
    await h2.ok(["create", "--user", "bob", "--id", "notes", "--prompt", "one"]);
    const server = await h2.spawn("bob");
    const route = await h1.json<RouteView>(["route", "--user", "bob"]);
    expect(route).toMatchObject({ host: "h2", server: { pid: server.pid, state: "ready", url: server.url } });
    expect(await h1.ok(["route", "--user", "bob"])).toContain("ready");
    expect(await h1.json<EvictionResult>(["evict", "notes"])).toEqual({
      evicted: [],
      skipped: [{ id: "notes", reason: "not active" }],
    });
    expect((await h1.run(["evict", "nowhere"])).code).toBe(4);

    await h1.ok(["create", "--user", "ann", "--id", "own"]);
    const frozen = h2.suspend();
    const refused = async (args: string[]) => {
      const { code: exit, json } = await h1.run([...args, "--json"]);
      return { exit, ...json<{ error: { code: string; message: string } }>().error };
    };
    const silent = [
      ["route", "--user", "bob"],
      ["evict", "notes"],
      ["evict", "nowhere"],
    ].map(async (args) => {
      const away = { exit: 7, code: "FLEET_HOST_AWAY", message: expect.stringContaining('"h2"') };
      expect(await refused(args), args.join(" ")).toMatchObject(away);
    });
    await Promise.all(silent);
    // A session on h1 needs no answer from h2.
    expect((await h1.run(["evict", "own"])).code).toBe(0);
    frozen.resume();
    expect((await h1.run(["evict", "notes"])).code).toBe(0);

    await h2.stopServing("SIGTERM");
    await hosts.gone("h2");
    expect(await refused(["evict", "notes"])).toMatchObject({ exit: 7, code: "FLEET_HOST_AWAY" });
  });

  it("logs --all -f names a host that stops answering, and continues with the logs of the other host", async () => {
    await using hosts = pair();
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    await hosts.serve();
    const users = { ann: "h1", bob: "h2", amy: "h1", ben: "h2" };
    for (const [user, host] of Object.entries(users)) {
      await hosts.place(user, host);
      await hosts.host(host).spawn(user);
    }
    const { log } = await h1.server("ann");
    const shown = (await h1.ok(["logs", "--all", "-n", "1"]))
      .split("\n")
      .flatMap((line) => /@(h\d)/.exec(line)?.[1] ?? []);
    expect(shown).toEqual(["h1", "h1", "h2", "h2"]);

    const following = h1.start(["logs", "--all", "-f", "-n", "1"]);
    const printed = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const) {
      following.child[name]?.on("data", (piece: Buffer | string) => {
        printed[name] += String(piece);
      });
    }
    await eventually("a line of each log", () => printed.stdout.split("\n").length > 4);
    const frozen = h2.suspend();
    await eventually("the warning", () => printed.stderr !== "", 60_000);
    appendFileSync(log, "still followed\n");
    await eventually("the log of the other host", () => printed.stdout.includes("| still followed\n"));
    following.child.kill("SIGINT");
    const { code, stderr } = await following.done;
    frozen.resume();
    expect({ code, stderr }).toEqual({
      code: 130,
      stderr: 'Warning: Host "h2" cannot be reached. The logs of its servers are left out.\n',
    });
  });
});
