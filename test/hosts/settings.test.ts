import { appendFileSync, existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import type { RouteView } from "../../src/hosts/options.js";
import type { EvictionResult } from "../../src/sessions/memory/eviction.js";
import { eventually } from "../fixtures/eventually.js";
import { type TestHost, TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`settings that a host does not have are not tested: ${problem}`);

/** The exit code of doctor, and the result of its check of the state folder. */
async function ofStateFolder(host: TestHost, env: NodeJS.ProcessEnv) {
  const ran = await host.run(["doctor", "--json"], { env });
  return { code: ran.code, ...ran.json<DoctorResult>().checks.find(({ name }) => name === "state folder") };
}

describe.skipIf(problem !== undefined)("the settings of a host", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it("a command fails if its store, host name or shared folder differs from that of serve on its state folder", async () => {
    await using hosts = new TestHosts({ redis, names: ["h1"], storage: "shared" });
    const h1 = hosts.host("h1");
    await h1.serve(hosts.store);
    await h1.ok(["create", "--user", "ann", "--id", "notes", "--prompt", "one"]);
    const store = h1.env.COPILOTFLEET_STORE ?? "";
    const other = join(h1.folder, "other");
    mkdirSync(other, { mode: 0o700 });
    const settings: [string, NodeJS.ProcessEnv, string, string][] = [
      ["store", { COPILOTFLEET_STORE: "file", COPILOTFLEET_STORAGE_SHARED: "null" }, '"file"', store],
      ["store", { COPILOTFLEET_STORE: redis.url("else") }, `"${redis.url("else")}"`, store],
      ["host.name", { COPILOTFLEET_HOST_NAME: "h9" }, '"h9"', '"h1"'],
      ["storage.shared", { COPILOTFLEET_STORAGE_SHARED: other }, `"${other}"`, hosts.shared],
      ["storage.shared", { COPILOTFLEET_STORAGE_SHARED: "null" }, "not set", hosts.shared],
    ];
    for (const [name, env, given, serving] of settings) {
      for (const args of [["serve"], ["spawn", "--user", "ann"], ["list"], ["gc"], ["stop", "--all"]]) {
        const { code, message } = await h1.refusal(3, args, { env });
        expect({ code, message }, args.join(" ")).toEqual({
          code: "FLEET_CONFIG_INVALID",
          message: expect.stringContaining(`${name} is ${given}.`),
        });
        expect(message).toContain(serving);
      }
      expect(await ofStateFolder(h1, env)).toMatchObject({
        code: 3,
        ok: false,
        detail: expect.stringContaining(`${name} is ${given}.`),
      });
    }
    const migrated = await h1.refusal(3, ["store", "migrate", "--to", redis.url("copy")], {
      env: { COPILOTFLEET_STORE: "file", COPILOTFLEET_STORAGE_SHARED: "null" },
    });
    expect(migrated.message).toContain('store is "file".');
    expect(existsSync(join(h1.root, "registry"))).toBe(false);
    // Another spelling of the same store or share is accepted.
    const alias = join(h1.folder, "alias");
    symlinkSync(hosts.shared, alias);
    const same = { COPILOTFLEET_STORE: store.replace("127.0.0.1", "localhost"), COPILOTFLEET_STORAGE_SHARED: alias };
    expect((await h1.run(["ps"], { env: same })).code).toBe(0);
    const password = { COPILOTFLEET_STORE_OPTIONS_PASSWORD: '{"env":"PASSWORD"}', PASSWORD: "secret" };
    expect((await h1.run(["ps"], { env: password })).code).not.toBe(3);
    expect(readFileSync(join(h1.root, "serving.json"), "utf8")).not.toContain("secret");

    // After serve was killed, the serving.json that it left does not make commands with other settings fail. A normal
    // end of serve removes the file.
    await h1.stopServing("SIGKILL");
    expect(existsSync(join(h1.root, "serving.json"))).toBe(true);
    expect((await h1.run(["ps"], { env: { COPILOTFLEET_STORE: redis.url("else") } })).code).toBe(0);
    await h1.serve(hosts.store);
    await h1.stopServing("SIGTERM");
    expect(existsSync(join(h1.root, "serving.json"))).toBe(false);
  });

  it("a state folder is tied to its host name as soon as it has a server, even if serve has never run there", async () => {
    await using hosts = new TestHosts({ redis, names: ["h1"], storage: "local" });
    const h1 = hosts.host("h1");
    await h1.spawn("ann");
    const env = { COPILOTFLEET_HOST_NAME: "h9" };
    for (const args of [["serve"], ["spawn", "--user", "ann"]]) {
      expect((await h1.refusal(3, args, { env })).message).toContain('holds the servers and sessions of host "h1"');
    }
    expect(await h1.spawn("ann")).toMatchObject({ state: "ready" });
  });

  it("commands refuse another host name for a state folder that has servers, even while no serve runs on it", async () => {
    await using hosts = new TestHosts({ redis, names: ["h1"], storage: "local" });
    const h1 = hosts.host("h1");
    const env = { COPILOTFLEET_HOST_NAME: "h9" };
    // The state folder has no servers so far, so another host name is accepted.
    await h1.serve(hosts.store);
    await h1.stopServing("SIGTERM");
    expect((await h1.run(["ps"], { env })).code).toBe(0);
    await h1.serve(hosts.store);
    await h1.ok(["create", "--user", "ann", "--id", "notes", "--prompt", "one"]);
    await h1.stopServing("SIGTERM");
    for (const args of [
      ["serve"],
      ["list"],
      ["send", "notes", "two", "--user", "ann"],
      ["store", "migrate", "--to", "file"],
    ]) {
      const { code, message, suggestions } = await h1.refusal(3, args, { env });
      expect(code).toBe("FLEET_CONFIG_INVALID");
      expect(message).toMatch(/host\.name is "h9", .* holds the servers and sessions of host "h1"/);
      expect(suggestions).toContain("export COPILOTFLEET_HOST_NAME=h1");
    }
    expect(await ofStateFolder(h1, env)).toMatchObject({ code: 3, detail: expect.stringContaining('host "h1"') });
    expect((await h1.run(["deploy", "systemd"], { env })).code).toBe(0);
    await h1.serve(hosts.store);
    expect(await h1.ok(["send", "notes", "two", "--user", "ann"])).toBe("[turn 2] two\n");
  });
});

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
