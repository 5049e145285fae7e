import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import type { Fleet } from "../../src/fleet/fleet.js";
import type { SessionView } from "../../src/sessions/view.js";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { type LogEntry, serve } from "../fixtures/fleets/serve.js";
import { heldModel, openLibrary } from "../fixtures/fleets/turns.js";
import { HOST_TTL_MS, TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`replies beside a full Redis are not tested: ${problem}`);

/** A reply costs money and time, so the user must get it even if Redis is too full to record the turn. */
describe.skipIf(problem !== undefined)("a Redis that is full when a turn ends", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterEach(async () => void (await redis.client.config("SET", "maxmemory", "0")));
  afterAll(() => redis.end());

  const fill = async () => void (await redis.client.config("SET", "maxmemory", "1mb"));
  const open = async (env: NodeJS.ProcessEnv = {}) => {
    const fleet = await faultFleet({ COPILOTFLEET_STORE: redis.url(), ...env });
    onTestFinished(async () => void (await redis.client.config("SET", "maxmemory", "0")));
    return fleet;
  };
  const lastUse = async (library: Fleet, id: string) =>
    (await library.sessions.list()).find((session: SessionView) => session.id === id)?.lastUsedAt;

  it.each([
    ["private", []],
    ["collaborative", ["--collaborative", "--member", "bob"]],
  ])("send prints the reply of a %s session, and warns, when Redis is full at the end of the turn", async (_, kind) => {
    const model = await heldModel();
    const fleet = await open(model.env);
    await fleet.json(["create", "--user", "alice", "--id", "notes", ...kind, "--prompt", "one"]);
    const library = await openLibrary(fleet);
    const before = await lastUse(library, "notes");
    const sending = fleet.start(["send", "notes", "!hold two", "--user", "alice", "--json"]);
    await eventually("the turn", () => model.held() === 1);
    await fill();
    model.release();
    const { code, stdout, stderr } = await sending.done;
    expect({ code, stdout: JSON.parse(stdout), stderr }).toEqual({
      code: 0,
      stdout: { session: expect.objectContaining({ id: "notes", owner: "alice" }), reply: "[turn 2] two" },
      stderr: expect.stringMatching(/^Warning: .*"notes".*could not be recorded: .*OOM.*\n$/),
    });
    expect(await lastUse(library, "notes")).toBe(before);
    await redis.client.config("SET", "maxmemory", "0");
    expect(await fleet.json(["send", "notes", "three", "--user", "alice"])).toMatchObject({ reply: "[turn 3] three" });
  });

  it("the library's send returns each reply when Redis is full, and one warning reports the failed records", async () => {
    const fleet = await open();
    const library = await openLibrary(fleet);
    const session = await library.sessions.create({ user: "alice", sessionId: "notes" });
    expect(await library.sessions.send(session, "one")).toMatchObject({ text: "[turn 1] one" });
    await eventually(
      "the record",
      async () => (await library.sessions.get("notes", { user: "alice" })).state === "active",
    );
    await fill();
    expect(await library.sessions.send(session, "two")).toMatchObject({ text: "[turn 2] two" });
    expect(await library.sessions.send(session, "three")).toMatchObject({ text: "[turn 3] three" });
    expect((await session.sendAndWait("four"))?.data.content).toBe("[turn 4] four");
    expect(await library.sessions.leave(session)).toMatchObject({ id: "notes", state: "idle" });
    expect(library.takeWarnings()).toEqual([expect.stringMatching(/"notes".*could not be recorded: .*OOM/)]);
  });

  it("send prints a reply from another host when Redis is full at the end of the turn, and both hosts stay alive", async () => {
    await using hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "local" });
    await hosts.serve();
    await hosts.store.placements.record("alice", null, { host: "h2", serverId: null });
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    await h1.ok(["create", "--user", "alice", "--id", "notes", "--prompt", "one"]);
    const sending = h1.start(["send", "notes", `!delay ${HOST_TTL_MS + 2_000} two`, "--user", "alice", "--json"]);
    await eventually("the turn", async () => (await h2.server("alice")).activeSessions === 1);
    await fill();
    const { code, stdout, stderr } = await sending.done;
    expect({ code, stdout: JSON.parse(stdout), stderr }).toEqual({
      code: 0,
      stdout: { session: expect.objectContaining({ id: "notes", host: "h2" }), reply: "[turn 2] two" },
      stderr: expect.stringMatching(/^Warning: Session "notes" could not be checked after the turn: .*OOM.*\n$/),
    });
    expect(h2.output).not.toContain("other hosts may consider this host gone");
    expect((await hosts.store.hosts.list()).filter(({ gone }) => !gone).map(({ name }) => name)).toEqual(["h1", "h2"]);
  });

  it("a client at the front door gets replies and can fork its session when Redis is full", async () => {
    const fleet = await open();
    const serving = await serve(fleet);
    const { token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "alice"]);
    const log = await serving.logged("serving");
    const connection = RuntimeConnection.forUri(String(log.door), { connectionToken: token });
    const client = new CopilotClient({ connection });
    onTestFinished(async () => void (await client.forceStop()));
    await client.start();
    const session = await client.createSession({ sessionId: "notes", onPermissionRequest: () => ({ kind: "reject" }) });
    expect((await session.sendAndWait("one"))?.data.content).toBe("[turn 1] one");
    await fill();
    expect((await session.sendAndWait("two"))?.data.content).toBe("[turn 2] two");
    expect(await serving.logged("front door: failed")).toMatchObject({
      sessionId: "notes",
      detail: expect.stringMatching(/^The turn could not be recorded: .*OOM/),
    });
    const fork = await client.rpc.sessions.fork({ sessionId: "notes" });
    const isAboutFork = ({ method }: LogEntry) => method === "sessions.fork";
    expect(await eventually("the log", () => serving.log().find(isAboutFork))).toMatchObject({
      msg: "front door: failed",
      sessionId: fork.sessionId,
      detail: expect.stringContaining("OOM"),
    });
    await redis.client.config("SET", "maxmemory", "0");
    // The fleet records a fork when a client uses the fork for the first time.
    const other = await client.resumeSession(fork.sessionId, { onPermissionRequest: () => ({ kind: "reject" }) });
    expect((await other.sendAndWait("three"))?.data.content).toBe("[turn 3] three");
    const library = await openLibrary(fleet);
    expect(await library.sessions.get(fork.sessionId, { user: "alice" })).toMatchObject({ owner: "alice" });
    await client.stop();
    await serving.end();
  });
});

describe.skipIf(problem !== undefined)("a Redis that is killed during a turn", () => {
  it("when Redis is killed during a turn in an ephemeral session, the library returns the reply and unloads the session", async () => {
    const redis = await RedisServer.start();
    onTestFinished(() => redis.end());
    const model = await heldModel();
    const fleet = await faultFleet({ COPILOTFLEET_STORE: redis.url(), ...model.env });
    await fleet.json(["create", "--user", "alice", "--id", "brief", "--ephemeral"]);
    const library = await openLibrary(fleet);
    const exchange = library.sessions.use("brief", "!hold one", { user: "alice" });
    await eventually("the turn", () => model.held() === 1);
    await redis.kill();
    model.release();
    expect((await exchange).text).toBe("[turn 1] one");
    expect(library.takeWarnings()).toContainEqual(expect.stringContaining('"brief"'));
    await redis.run();
    expect(await fleet.ps()).toMatchObject([{ state: "ready", activeSessions: 0 }]);
  });
});
