import { appendFileSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { Transcript } from "../../src/hosts/options.js";
import type { HostView, Overview } from "../../src/hosts/overview.js";
import { issueToken } from "../../src/identity/tokens.js";
import { historyPath } from "../../src/runtime/history/session-state.js";
import type { ServerView } from "../../src/servers/server.js";
import type { Stopped } from "../../src/servers/stop.js";
import type { GcResult } from "../../src/sessions/gc/collect.js";
import type { EvictionResult } from "../../src/sessions/memory/eviction.js";
import type { SessionView } from "../../src/sessions/view.js";
import { RawClient } from "../door/raw-client.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { type TestHost, TestHosts } from "../fixtures/hosts/hosts.js";
import { finalStep, prompt } from "../fixtures/sessions/history.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`a fleet on two hosts is not tested: ${problem}`);

interface Turn {
  session: SessionView;
  reply: string;
}

/** The number of tests that have begun, including repetitions of a failed test. */
let tries = 0;
/** A name for a user or session that no earlier test and no earlier try of this test has used. */
const fresh = (name: string) => `${name}-${tries}`;

/** Most commands run on h1 and concern a user whose server is on h2. */
describe.skipIf(problem !== undefined).each([
  ["with separate storage", { storage: "local" }],
  ["with shared storage", { storage: "shared" }],
] as const)("two hosts %s", (_, { storage }) => {
  /** For tests that do not depend on the storage. With shared storage, they run only in `npm run soak`. */
  const anyStorage = it.skipIf(storage === "shared" && process.env.SOAK === undefined);
  let redis: RedisServer;
  let hosts: TestHosts;
  let h1: TestHost;
  let h2: TestHost;
  beforeAll(async () => {
    redis = await RedisServer.start();
    hosts = new TestHosts({ redis, names: ["h1", "h2"], storage });
    [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    await hosts.serve();
    await hosts.place("alice", "h1");
    await hosts.place("bob", "h2");
  });
  afterAll(async () => {
    await hosts[Symbol.asyncDispose]();
    await redis.end();
  });
  beforeEach(async () => {
    tries++;
    await hosts.serve(); // the test before this one may have killed a serve
  });

  anyStorage(
    "spawn starts a server on the host of the server's user, and ps and logs on the other host show it, too",
    async () => {
      const [ann, ben] = [fresh("ann"), fresh("ben")];
      await hosts.place(ann, "h1");
      await hosts.place(ben, "h2");
      const { server, created } = await h1.json<{ server: ServerView; created: boolean }>(["spawn", "--user", ben]);
      expect({ created, ...server }).toMatchObject({
        created: true,
        user: ben,
        hostName: "h2",
        state: "ready",
        away: false,
      });
      expect(h2.processes()).toContain(server.pid);
      expect(h1.processes()).not.toContain(server.pid);
      expect(await h1.json(["spawn", "--user", ben])).toMatchObject({ created: false, server: { pid: server.pid } });
      await h1.json(["spawn", "--user", ann]);
      for (const { json } of [h1, h2].map((host) => ({ json: host.json.bind(host) }))) {
        const { servers } = await json<{ servers: ServerView[] }>(["ps"]);
        const shown = servers.filter(({ user }) => user === ann || user === ben);
        expect(shown.map(({ user, hostName }) => `${user}@${hostName}`).toSorted()).toEqual([`${ann}@h1`, `${ben}@h2`]);
      }
      expect((await h1.ok(["ps"])).split("\n")[0]).toMatch(/^SERVER +HOST +USER/);
      const log = await h1.json<{ server: string; lines: string[] }>(["logs", ben, "-n", "5"]);
      expect(log.server).toBe(server.id);
      expect(log.lines.join("\n")).toContain(`listening on port ${server.port}`);
      await h1.json(["stop", "--user", ann]);
      await h1.json(["stop", "--user", ben]);
    },
  );

  anyStorage(
    "ps and list with --host show only what is on that host, and refuse a host that the fleet does not have",
    async () => {
      const [ann, ben] = [fresh("ann-of"), fresh("ben-of")];
      await hosts.place(ann, "h1");
      await hosts.place(ben, "h2");
      for (const user of [ann, ben]) await h1.json(["create", "--user", user, "--id", user]);
      for (const [user, host] of [
        [ann, "h1"],
        [ben, "h2"],
      ] as const) {
        const { servers } = await h1.json<{ servers: ServerView[] }>(["ps", "--host", host]);
        expect(new Set(servers.map(({ hostName }) => hostName))).toEqual(new Set([host]));
        expect(servers.map((server) => server.user)).toContain(user);
        expect((await h1.ok(["ps", "-q", "--user", user])).trimEnd()).toMatch(new RegExp(`^${user}-\\w+@${host}$`));
        const ids = (await h1.ok(["list", "-q", "--host", host])).split("\n");
        expect([ann, ben].filter((id) => ids.includes(id))).toEqual([user]);
      }
      expect(await h1.refusal(2, ["ps", "--host", "h3"])).toMatchObject({
        message: '--host "h3" is not a host of this fleet. Use h1 or h2.',
      });
      await h1.json(["stop", "--user", ann]);
      await h1.json(["stop", "--user", ben]);
    },
  );

  it("create, send, resume and list work with a session on another host as with a session on this host", async () => {
    const [notes, later] = [fresh("notes"), fresh("later")];
    const made = await h1.json<Turn>(["create", "--user", "bob", "--id", notes, "--purpose", "p", "--prompt", "one"]);
    expect(made).toMatchObject({
      reply: "[turn 1] one",
      session: { owner: "bob", host: "h2", purpose: "p", stranded: false },
    });
    expect(await h1.json(["send", notes, "two", "--user", "bob"])).toMatchObject({ reply: "[turn 2] two" });
    expect(await h2.json(["send", notes, "three", "--user", "bob"])).toMatchObject({ reply: "[turn 3] three" });
    expect(await h1.json(["resume", notes, "--user", "bob", "--prompt", "four"])).toMatchObject({
      reply: "[turn 4] four",
      session: { state: "idle", host: "h2" },
    });
    // This session never had a turn, so the runtime cannot resume it. send therefore creates it again, under its id.
    await h1.json(["create", "--user", "bob", "--id", later]);
    expect(await h1.json(["send", later, "x", "--user", "bob"])).toMatchObject({ reply: "[turn 1] x" });
    expect(await h1.refusal(5, ["create", "--user", "bob", "--id", notes])).toMatchObject({
      code: "FLEET_SESSION_EXISTS",
    });
    for (const user of ["mallory", "alice"]) {
      const error = await h1.refusal(4, ["send", notes, "x", "--user", user]);
      expect(error.code).toBe("FLEET_SESSION_NOT_FOUND");
    }
    const { sessions } = await h1.json<{ sessions: SessionView[] }>(["list", "--user", "bob"]);
    const own = sessions.filter(({ id }) => id === notes || id === later);
    expect(own.map(({ id, host }) => `${id}@${host}`)).toEqual([`${later}@h2`, `${notes}@h2`]);
    expect(own.every(({ sizeBytes }) => sizeBytes > 0)).toBe(true);
    expect((await h1.ok(["list"])).split("\n")[0]).toMatch(/^SESSION +OWNER +HOST +SERVER/);
  });

  it("a host shows the transcript and events of another host's long session, but only to users of the session", async () => {
    const talk = fresh("talk");
    await h1.json(["create", "--user", "bob", "--id", talk, "--prompt", "one"]);
    const { home } = await h2.record("bob");
    const long = "ä".repeat(400_000);
    for (let turn = 0; turn < 4; turn++) {
      appendFileSync(historyPath(home, talk), prompt({ content: `prompt ${turn}` }) + finalStep(long));
    }
    const there = await h1.json<Transcript>(["transcript", talk, "--user", "bob"]);
    expect(there.session).toMatchObject({ id: talk, host: "h2" });
    expect(there.entries.map(({ text, turn }) => [text, turn])).toEqual([
      ["one", 1],
      ["[turn 1] one", 1],
      ...[0, 1, 2, 3].flatMap((turn) => [
        [`prompt ${turn}`, turn + 2],
        [long, turn + 2],
      ]),
    ]);
    expect((await h2.json<Transcript>(["transcript", talk, "--user", "bob"])).entries).toEqual(there.entries);

    const ids: string[] = [];
    await using fleet = await Fleet.open({ env: h1.env, cwd: h1.folder });
    const recorded = readFileSync(historyPath(home, talk), "utf8").trimEnd().split("\n");
    const [first = "", ...rest] = recorded.map((text) => (JSON.parse(text) as { id: string }).id);
    for await (const { id } of fleet.sessions.followEvents(talk, { user: "bob", after: first })) ids.push(id);
    expect(ids).toEqual(rest);

    const error = await h1.refusal(4, ["transcript", talk, "--user", "alice"]);
    expect(error.code).toBe("FLEET_SESSION_NOT_FOUND");
    await h1.json(["delete", talk]);
  });

  it("describe on one host shows a server, a session and a user of another host", async () => {
    const [dan, plan] = [fresh("dan"), fresh("plan")];
    await hosts.place(dan, "h2");
    await h1.json(["create", "--user", dan, "--id", plan, "--prompt", "one"]);
    const { servers } = await h1.json<{ servers: ServerView[] }>(["ps", "--user", dan]);
    const [server] = servers;
    expect(await h1.json(["describe", `server/${dan}`])).toMatchObject({
      server: { id: server?.id, hostName: "h2", state: "ready", pid: server?.pid, sessions: 1 },
      sessions: [{ id: plan, host: "h2" }],
      logLines: expect.arrayContaining([`CLI server listening on port ${server?.port}`]),
    });
    expect(await h1.json(["describe", plan])).toMatchObject({
      session: { id: plan, owner: dan, host: "h2" },
      turns: 1,
      folder: expect.stringMatching(new RegExp(`^${server?.home}/session-state/${plan}$`)),
      server: { id: server?.id, state: "ready" },
    });
    expect(await h1.json(["describe", dan])).toMatchObject({
      placement: { host: "h2" },
      servers: [{ id: server?.id, hostName: "h2" }],
      sessions: [{ id: plan }],
    });
    await h1.json(["stop", "--user", dan]);
  });

  it("a session on h2 accepts turns of its members from h1, and turns under a lease from both hosts", async () => {
    const team = fresh("team");
    await h1.json(["create", "--user", "bob", "--id", team, "--collaborative", "--member", "alice"]);
    expect(await h1.json(["send", team, "a", "--user", "alice"])).toMatchObject({ reply: "[turn 1] a" });
    expect(await h1.json(["send", team, "b", "--user", "bob"])).toMatchObject({ reply: "[turn 2] b" });
    // `lock` holds the lease while it runs `send`, which uses the same lease. So the turn does not wait.
    const send = [process.execPath, COMMAND, "send", team, "c", "--user", "bob"];
    const ran = await h1.run(["lock", team, "--user", "bob", "--", ...send]);
    expect(ran).toMatchObject({ code: 0, stdout: "[turn 3] c\n", stderr: "" });
    expect(await hosts.store.leases.read(team)).toBeNull();
    const lock = ["lock", team, "--user", "bob"];
    const { lease } = await h1.json<{ lease: { token: string } }>(lock);
    const env = { COPILOTFLEET_LEASE_SESSION: team, COPILOTFLEET_LEASE_TOKEN: lease.token };
    expect(await h1.json(["send", team, "e", "--user", "bob"], { env })).toMatchObject({ reply: "[turn 4] e" });
    expect(await h2.json(["send", team, "f", "--user", "bob"], { env })).toMatchObject({ reply: "[turn 5] f" });
    const LOST = { code: "FLEET_LEASE_LOST" };
    // The lease is valid only for bob and with its own token.
    expect(await h1.refusal(5, ["send", team, "x", "--user", "alice"], { env })).toMatchObject(LOST);
    const wrong = { ...env, COPILOTFLEET_LEASE_TOKEN: "0".repeat(64) };
    expect(await h1.refusal(5, ["send", team, "x", "--user", "bob"], { env: wrong })).toMatchObject(LOST);
    const stolen = await h1.json<typeof lease>(["lock", team, "--user", "bob", "--steal", "--reason", "mine"]);
    expect(await h1.refusal(5, ["send", team, "x", "--user", "bob"], { env })).toMatchObject(LOST);
    expect(stolen).toMatchObject({ lease: { stealReason: "mine" } });
    const { token } = (stolen as unknown as { lease: { token: string } }).lease;
    await h1.json(["unlock", team, "--token", token]);
    expect(await h1.json(["send", team, "g", "--user", "alice"])).toMatchObject({ reply: "[turn 6] g" });
    expect(await hosts.store.leases.read(team)).toBeNull();
  });

  it("a program's turns on another host run under its lease, and end when the lease is taken over", async () => {
    const held = fresh("held");
    await h1.json(["create", "--user", "bob", "--id", held]);
    await using fleet = await Fleet.open({ env: h1.env, cwd: h1.folder });
    const session = await fleet.sessions.resume(held, { user: "bob" });
    expect((await fleet.sessions.send(session, "one")).text).toBe("[turn 1] one");
    await fleet.leases.hold(held, { user: "bob", ttl: "30s" }, async (lease) => {
      expect((await fleet.sessions.send(session, "two", { lease })).text).toBe("[turn 2] two");
      // Without the option `lease`, the fleet uses the lease of the surrounding leases.hold.
      expect((await fleet.sessions.send(session, "three")).text).toBe("[turn 3] three");
      const reply = await fleet.sessions.use(held, "four", { user: "bob" });
      expect(reply.text).toBe("[turn 4] four");
      const records = await hosts.store.tokens.list();
      expect(records.some((record) => record.lease?.fence === lease.fence)).toBe(true);
      expect(JSON.stringify(records)).not.toContain(lease.token);
    });
    expect((await fleet.sessions.send(session, "five")).text).toBe("[turn 5] five");
    const first = await fleet.leases.acquire(held, { user: "bob", ttl: "30s" });
    // If somebody takes the lease over, the turn under the first lease ends on both hosts.
    const turn = fleet.sessions.send(session, "!delay 20000 six", { lease: first });
    const lost = expect(turn).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
    const isInTurn = async () =>
      (await h1.json<{ sessions: SessionView[] }>(["list"])).sessions.find(({ id }) => id === held)?.state === "active";
    await eventually("the turn", isInTurn);
    const next = await fleet.leases.acquire(held, { user: "bob", steal: { reason: "mine" } });
    await lost;
    expect(await fleet.sessions.use(held, "seven", { user: "bob", lease: next })).toMatchObject({
      text: expect.stringContaining("seven"),
    });
    // The signal of this lease never aborts. The turn still ends, because the other host notices the loss of the lease.
    const unheard = { fence: next.fence, signal: new AbortController().signal, check: async () => await next.check() };
    const late = fleet.sessions.send(session, "!delay 20000 eight", {
      lease: { ...unheard, release: async () => undefined },
    });
    const ended = expect(late).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
    await eventually("the turn", isInTurn);
    const last = await fleet.leases.acquire(held, { user: "bob", steal: { reason: "mine" } });
    await ended;
    await last.release();
  });

  it("when the lease in a client's token has ended, the front door refuses the client's prompts to that session", async () => {
    const [late, other] = [fresh("late"), fresh("other")];
    const { store } = hosts;
    await h1.json(["create", "--user", "bob", "--id", late, "--prompt", "one"]);
    const { lease } = await h1.json<{ lease: { token: string; fence: number } }>(["lock", late, "--user", "bob"]);
    const { id, token } = await issueToken(store, "bob", 60_000, { lease: { sessionId: late, fence: lease.fence } });
    const door = (await store.hosts.list()).find(({ name }) => name === h2.name)?.door ?? "";
    const client = await RawClient.as(door, token);
    await client.requestOk("session.resume", { sessionId: late });
    const send = async (prompt: string) => await client.request("session.send", { sessionId: late, prompt });
    expect((await send("two")).error).toBeUndefined();
    await h1.json(["unlock", late, "--token", lease.token]);
    const LOST = { data: { code: "FLEET_LEASE_LOST" } };
    await eventually("the end of the turn", async () => (await send("three")).error !== undefined);
    expect((await send("four")).error).toMatchObject(LOST);
    // The client can still create and use other sessions, because the lease is only on `late`.
    expect((await client.request("session.create", { sessionId: other })).error).toBeUndefined();
    // Wait for the end of a turn. If a client leaves when a turn begins, the runtime may never finish unloading the
    // session, and then its server does not end by itself.
    await client.turnOk(other, "x");
    client.socket.destroy();
    await store.tokens.delete(id);
  });

  it("an ephemeral session on another host is deleted after its prompt", async () => {
    const brief = fresh("brief");
    const made = await h1.json<Turn>(["create", "--user", "bob", "--id", brief, "--ephemeral", "--prompt", "x"]);
    expect(made).toMatchObject({ reply: "[turn 1] x", session: { state: "gone", persistence: "ephemeral" } });
    expect(await hosts.store.sessions.read(brief)).toBeNull();
  });

  it("listeners of another host's session still get events after the program connects again to use a lease", async () => {
    const sessionId = fresh("heard");
    await using fleet = await Fleet.open({ env: h1.env, cwd: h1.folder });
    const session = await fleet.sessions.create({ user: "bob", sessionId });
    const heard: string[] = [];
    session.on("assistant.message", ({ data }) => void heard.push(data.content));
    await fleet.sessions.send(session, "one");
    // Only the front door can check a lease, so the program has to connect again and name the lease.
    const lease = await fleet.leases.acquire(sessionId, { user: "bob" });
    await fleet.sessions.send(session, "two", { lease });
    await lease.release();
    expect(heard).toEqual(["[turn 1] one", "[turn 2] two"]);
  });

  it("a session that a program has open on another host survives gc and evict until the program leaves it", async () => {
    const open = fresh("open");
    await using fleet = await Fleet.open({ env: h1.env, cwd: h1.folder });
    const session = await fleet.sessions.create({ user: "bob", sessionId: open, ephemeral: true, ttl: "1ms" });
    let heard = "";
    session.on("assistant.message", (event) => {
      heard += event.data.content;
    });
    expect((await fleet.sessions.send(session, "one")).text).toBe("[turn 1] one");
    expect(heard).toBe("[turn 1] one");
    expect(await hosts.store.sessions.read(open)).toMatchObject({
      host: "h2",
      usedBy: { at: "h1", pid: process.pid },
    });
    // An open session is in use, however old it is. The process that uses it runs on h1, where h2 cannot see it.
    const kept = await h1.json<GcResult>(["gc", "--ttl", "24h"]);
    expect(kept.deleted.map(({ id }) => id)).not.toContain(open);
    const evicted = await h1.json<{ evicted: string[] }>(["evict", open]);
    expect(evicted.evicted).toEqual([open]);
    const idle = await h1.json<GcResult>(["gc", "--ttl", "24h"]);
    expect(idle.skipped).toContainEqual({ id: open, reason: "in-use" });
    expect((await fleet.sessions.send(session, "two")).text).toBe("[turn 2] two");
    expect(await h1.json(["evict", "--max", "0"])).toMatchObject({
      evicted: expect.arrayContaining([open]),
    });
    expect(await fleet.sessions.leave(session)).toMatchObject({ state: "gone" });
    expect(await hosts.store.sessions.read(open)).toBeNull();
    const client = await fleet.clients.connect("bob");
    expect(await client.ping("hello")).toMatchObject({ message: expect.stringContaining("hello") });
    await expect(fleet.clients.connect("bob", { gitHubToken: "ghp_x" })).rejects.toMatchObject({
      code: "FLEET_USAGE_INVALID",
    });
  });

  /**
   * Creates a session on each host, and expects that one gc deletes both.
   *
   * @param isOver returns true if a gc of serve may already have deleted them
   */
  async function deletedByGc(name: string, isOver: () => boolean): Promise<void> {
    const [first, second] = [`${name}-a`, `${name}-b`];
    await h1.json(["create", "--user", "bob", "--id", second, "--ttl", "1ms", "--prompt", "x"]);
    await h1.json(["create", "--user", "alice", "--id", first, "--ttl", "1ms", "--prompt", "x"]);
    // gc keeps loaded sessions, and a server unloads a session only some time after its last client has left. So unload
    // both now.
    await eventually("the sessions' absence from memory", async () => {
      const { evicted, skipped } = await h1.json<EvictionResult>(["evict", first, second]);
      return evicted.length === 0 && skipped.every(({ reason }) => reason === "not active");
    });
    await eventually(
      "a gc that would delete both",
      async () => {
        const { deleted } = await h2.json<GcResult>(["gc", "--ttl", "24h", "--dry-run"]);
        const ids = deleted.map(({ id }) => id);
        return isOver() || (ids.includes(first) && ids.includes(second));
      },
      120_000,
    );
    for (const id of [first, second]) expect(await hosts.store.sessions.read(id)).not.toBeNull();
    const result = await h1.json<GcResult>(["gc", "--ttl", "24h"]);
    const kept = JSON.stringify(result.skipped.filter(({ id }) => id === first || id === second));
    const deleted = result.deleted.filter(({ id }) => id.startsWith(name));
    expect(deleted.map(({ id }) => id).toSorted(), `skipped: ${kept}`).toEqual([first, second]);
    expect(deleted.every(({ bytes }) => bytes > 0)).toBe(true);
    for (const id of [first, second]) expect(await hosts.store.sessions.read(id)).toBeNull();
  }

  it("gc and delete on one host delete sessions on both hosts", async () => {
    const doomed = fresh("doomed");
    // Each serve runs its first gc a minute after its start. On a busy machine, that gc may delete the sessions before
    // the gc of this test. This happens at most once for each serve, so try again up to twice.
    const gcOfServe = () => (h1.printed + h2.printed).match(/gc deleted [1-9]/g)?.length ?? 0;
    const others = async () =>
      (await hosts.store.sessions.list()).map(({ id }) => id).filter((id) => !id.startsWith("old-"));
    const before = await others();
    for (let round = 1; ; round++) {
      const earlier = gcOfServe();
      const deletion = deletedByGc(fresh(`old-${round}`), () => gcOfServe() > earlier);
      const error = await deletion.catch((caught: unknown) => caught);
      if (error === undefined) break;
      const report = eventually("the gc of a serve", () => round <= 2 && gcOfServe() > earlier);
      await report.catch(() => Promise.reject(error));
    }
    expect(await others()).toEqual(before);
    await h1.json(["create", "--user", "bob", "--id", doomed, "--prompt", "x"]);
    const deletion = ["delete", doomed, "nothing", "--user", "bob", "--ignore-not-found"];
    expect(await h1.json(deletion)).toEqual({ deleted: [doomed] });
    expect(await hosts.store.sessions.read(doomed)).toBeNull();
    expect(await h1.refusal(4, ["send", doomed, "x", "--user", "bob"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
  });

  it("stop and restart reach servers on another host by user, by id and with --all", async () => {
    const notes = fresh("notes");
    await h1.json(["create", "--user", "bob", "--id", notes, "--prompt", "one"]);
    await h1.json(["spawn", "--user", "alice"]);
    const { servers } = await h1.json<{ servers: ServerView[] }>(["ps"]);
    const bob = servers.find(({ user }) => user === "bob");
    const again = await h1.json<{ stopped: Stopped[]; servers: ServerView[] }>(["restart", "--user", "bob"]);
    expect(again).toMatchObject({
      stopped: [{ outcome: "drained", cut: [], hostName: "h2" }],
      servers: [{ hostName: "h2" }],
    });
    expect(again.servers[0]?.pid).not.toBe(bob?.pid);
    const rolled = await h1.json<{ servers: ServerView[] }>(["restart", "--rolling", `${bob?.id}@h2`]);
    expect(rolled.servers).toMatchObject([{ user: "bob", hostName: "h2", state: "ready" }]);
    expect(await h1.refusal(4, ["stop", `${bob?.id}@h1`])).toMatchObject({ code: "FLEET_NAME_NOT_FOUND" });
    const { stopped } = await h1.json<{ stopped: Stopped[] }>(["stop", "--all"]);
    expect(new Set(stopped.map(({ hostName }) => hostName))).toEqual(new Set(["h1", "h2"]));
    const after = await h1.json<{ servers: ServerView[] }>(["ps"]);
    expect(new Set(after.servers.map(({ state }) => state))).toEqual(new Set(["stopped"]));
    expect(await h1.json(["send", notes, "two", "--user", "bob"])).toMatchObject({ reply: "[turn 2] two" });
  });

  anyStorage(
    "connect for a server on another host names the front door of that host and how to get a token",
    async () => {
      await h1.json(["spawn", "--user", "bob"]);
      const error = await h1.refusal(7, ["connect", "--user", "bob"]);
      expect(error).toMatchObject({ code: "FLEET_SERVER_UNREACHABLE", message: expect.stringContaining('host "h2"') });
      const door = (await hosts.store.hosts.list()).find(({ name }) => name === "h2")?.door;
      expect(error.suggestions.join("\n")).toContain(String(door));
      expect(error.suggestions).toContain("copilotfleet token issue --user bob --ttl 30d");
      expect(await h2.json(["connect", "--user", "bob"])).toMatchObject({ user: "bob", token: expect.any(String) });
    },
  );

  anyStorage("stop refuses an id that exists on two hosts, names both servers, and accepts ID@HOST", async () => {
    const carol = fresh("carol");
    await hosts.place(carol, "h1");
    await h1.json(["spawn", "--user", carol]);
    await hosts.place(carol, "h2");
    const { server } = await h1.json<{ server: ServerView }>(["spawn", "--user", carol]);
    expect(server.hostName).toBe("h2");
    const error = await h1.refusal(4, ["stop", server.id]);
    expect(error).toMatchObject({
      code: "FLEET_NAME_NOT_FOUND",
      message: expect.stringContaining(`${server.id}@h1`),
    });
    expect(error.message).toContain(`${server.id}@h2`);
    expect(await h1.refusal(4, ["describe", server.id])).toMatchObject({ message: error.message });
    for (const hostName of ["h1", "h2"])
      expect(await h1.json(["describe", `${server.id}@${hostName}`])).toMatchObject({ server: { hostName } });
    expect(await h1.json(["stop", `${server.id}@h1`])).toMatchObject({
      stopped: [{ hostName: "h1", outcome: "drained" }],
    });
    expect(await h1.json(["stop", "--user", carol])).toMatchObject({
      stopped: [{ hostName: "h2", outcome: "drained" }],
    });
  });

  anyStorage("top shows the hosts, servers and sessions of both hosts", async () => {
    for (const user of ["alice", "bob"]) await h1.json(["spawn", "--user", user]);
    const seen = await h1.json<Overview>(["top"]);
    const ready = seen.servers.filter(({ state }) => state === "ready");
    expect(ready).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ user: "alice", hostName: "h1" }),
        expect.objectContaining({ user: "bob", hostName: "h2" }),
      ]),
    );
    const readyOn = (name: string) => ready.filter(({ hostName }) => hostName === name).length;
    expect(seen.hosts).toMatchObject([
      {
        name: "h1",
        state: "serving",
        term: expect.any(Number),
        door: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
        servers: readyOn("h1"),
      },
      { name: "h2", state: "serving", servers: readyOn("h2") },
    ]);
    expect(seen.hosts.every(({ heartbeatAgeMs }) => heartbeatAgeMs !== null)).toBe(true);
    expect(seen.sessions).toEqual({ active: expect.any(Number), idle: expect.any(Number) });
    const text = await h1.ok(["top", "--once"]);
    expect(text).toMatch(/^HOST +STATE +TERM +HEARTBEAT +FRONT DOOR/);
    expect(text).toMatch(/^Sessions: \d+ active, \d+ idle {3}Turns: \d+$/m);
  });

  it("commands on one host still work while the other host is dead, and report what they cannot reach", async () => {
    const [ben, notes] = [fresh("ben"), fresh("notes")];
    await hosts.place(ben, "h2");
    await h1.json(["create", "--user", ben, "--id", notes, "--prompt", "one"]);
    await h2.stopServing("SIGKILL");
    await eventually("the end of h2", async () => {
      const list = await hosts.store.hosts.list();
      return list.find(({ name }) => name === "h2")?.gone === true;
    });
    const ps = await h1.run(["ps", "--json"]);
    expect(ps).toMatchObject({ code: 0, stderr: "Warning: Host h2 cannot be reached.\n" });
    const bens = ps.json<{ servers: ServerView[] }>().servers.find(({ user }) => user === ben);
    expect(bens).toMatchObject({ hostName: "h2", away: true, pid: null, state: "unhealthy" });
    const described = await h1.run(["describe", `${bens?.id}@h2`, "--json"]);
    expect(described).toMatchObject({ code: 0, stderr: "Warning: Host h2 cannot be reached.\n" });
    expect(described.json()).toMatchObject({ kind: "server", server: { away: true, user: ben }, logLines: [] });
    expect(await h1.refusal(7, ["stop", `${bens?.id}@h2`])).toMatchObject({ code: "FLEET_HOST_AWAY" });
    expect(await h1.refusal(7, ["logs", `${bens?.id}@h2`])).toMatchObject({ code: "FLEET_HOST_AWAY" });
    for (const command of ["stop", "restart"]) {
      await h1.json(["spawn", "--user", "alice"]);
      const all = await h1.run([command, "--all", "--json"]);
      const { stopped, away } = all.json<{ stopped: Stopped[]; away: string[] }>();
      expect(all.code, command).toBe(7);
      expect(stopped.map(({ hostName, outcome }) => [hostName, outcome])).toContainEqual(["h1", "drained"]);
      expect(stopped.map(({ hostName }) => hostName)).not.toContain("h2");
      expect(away).toContain(`${bens?.id}@h2`);
      expect(all.stderr).toContain("Warning: Host h2 cannot be reached.\n");
      expect(all.stderr).toContain(
        `Warning: These servers are unchanged, because their hosts cannot be reached: ${away.join(", ")}\n`,
      );
    }
    const doctor = await h1.run(["doctor", "--quick", "--json"]);
    const checks = new Map(doctor.json<DoctorResult>().checks.map((check) => [check.name, check]));
    expect(checks.get("hosts")).toMatchObject({
      level: "warning",
      detail: "hosts that need attention: 1 of 2",
      items: ["h2: does not serve"],
      fix: "copilotfleet top --once",
    });
    if (storage === "local") {
      expect(checks.get("sessions")).toMatchObject({
        level: "failed",
        items: expect.arrayContaining([`${notes}: on the disk of host h2, which does not serve`]),
        fix: "copilotfleet serve  # on host h2",
      });
    }
    const top = await h1.run(["top", "--json"]);
    const gone = top.json<Overview>().hosts.find(({ name }: HostView) => name === "h2");
    expect(gone).toMatchObject({ state: "gone", heartbeatAgeMs: null, servers: 0 });
    const list = await h1.run(["list", "--user", ben, "--json"]);
    const listed = list.json<{ sessions: SessionView[] }>().sessions.find(({ id }) => id === notes);
    expect(listed).toMatchObject({ host: "h2", stranded: storage === "local" });
    const said = async () => {
      const { entries } = await h1.json<Transcript>(["transcript", notes, "--user", ben]);
      return entries.map(({ text }) => text);
    };
    if (storage === "shared") {
      expect(await said()).toEqual(["one", "[turn 1] one"]);
      expect((await h1.registry()).servers[bens?.id ?? ""]).toBeUndefined();
      expect(await h1.json(["send", notes, "two", "--user", ben])).toMatchObject({
        reply: "[turn 2] two",
        session: { host: "h1" },
      });
      return;
    }
    for (const args of [
      ["send", notes, "x", "--user", ben],
      ["delete", notes],
      ["transcript", notes, "--user", ben],
    ]) {
      expect(await h1.refusal(7, args)).toMatchObject({ code: "FLEET_HOST_AWAY" });
    }
    await h2.serve(hosts.store);
    expect(await said()).toEqual(["one", "[turn 1] one"]);
    expect(await h1.json(["send", notes, "two", "--user", ben])).toMatchObject({ reply: "[turn 2] two" });
  });
});
