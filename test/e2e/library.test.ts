import type { Socket } from "node:net";
import type { CopilotClient } from "@github/copilot-sdk";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Fleet, FleetError, isFleetError } from "../../src/index.js";
import { ACKNOWLEDGE } from "../../src/runtime/wire/frames.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { isRunning } from "../fixtures/processes.js";

const command = testFleet();
const open = (env: NodeJS.ProcessEnv = {}) => Fleet.open({ env: { ...command.env, ...env }, cwd: command.folder });

let fleet: Fleet;
beforeEach(async () => {
  fleet = await open();
});
afterEach(async () => {
  await fleet.close();
});

async function killServer(user: string): Promise<void> {
  const { pid } = await fleet.servers.ofUser(user);
  if (pid === null) throw new Error("no server runs");
  process.kill(pid, "SIGKILL");
  await eventually("its death", () => !isRunning(pid));
}

async function refusal(work: Promise<unknown>): Promise<FleetError> {
  const error: unknown = await work.then(
    () => new Error("nothing was refused"),
    (reason: unknown) => reason,
  );
  if (!isFleetError(error)) throw error;
  return error;
}

describe("clients.connect", () => {
  it("clients.connect gives one connected client for each user, even to callers that ask at the same time", async () => {
    const [one, two] = await Promise.all([fleet.clients.connect("alice"), fleet.clients.connect("alice")]);
    expect(one).toBe(two);
    expect(await fleet.clients.connect("alice")).toBe(one);
    expect(await fleet.clients.connect("bob")).not.toBe(one);
    expect((await one.ping("hello")).message).toContain("hello");
    expect((await command.server("alice")).state).toBe("ready");
  });

  it("clients.connect gives a new client after the user's server died", async () => {
    const before = await fleet.clients.connect("alice");
    await killServer("alice");
    const after = await fleet.clients.connect("alice");
    expect(after).not.toBe(before);
    expect((await after.ping("again")).message).toContain("again");
  });

  it.each([
    ["sets TCP_NODELAY, as its server does", true],
    ["acknowledges each message as soon as it arrives, if its server does not set TCP_NODELAY", false],
  ])("a client from clients.connect %s", async (_, noDelay) => {
    await using own = await open(noDelay ? {} : { COPILOTFLEET_RUNTIME_ENV: "LD_PRELOAD", LD_PRELOAD: "" });
    const user = noDelay ? "prompt" : "delayed";
    const client = await own.clients.connect(user);
    expect((await command.record(user)).noDelay).toBe(noDelay);
    const { socket } = client as unknown as { socket: Socket };
    const options = Object.getOwnPropertySymbols(socket)
      .filter((symbol) => /nodelay/i.test(symbol.description ?? ""))
      .map((symbol) => Reflect.get(socket, symbol));
    expect(options).toContain(true);
    const write = vi.spyOn(socket, "write");
    await client.ping("x");
    expect(write.mock.calls.some(([data]) => String(data).includes(ACKNOWLEDGE))).toBe(!noDelay);
    write.mockRestore();
    const times: number[] = [];
    for (let index = 0; index < 20; index++) {
      const begun = performance.now();
      await client.ping("x");
      times.push(performance.now() - begun);
    }
    // If a delay remained, each ping would take at least 40 ms. Otherwise, only a few pings take so long, and only on a
    // busy machine.
    expect(times.sort((a, b) => a - b)[5]).toBeLessThan(20);
  });

  it("clients.connect passes a GitHub token to the server's process, and records it nowhere", async () => {
    const gitHubToken = `gho_${"c".repeat(30)}`;
    await fleet.clients.connect("tokened", { gitHubToken });
    const { stdout } = await command.run(["ps", "--json"]);
    expect(stdout).not.toContain(gitHubToken);
    await killServer("tokened");
    // Without the token, a caller cannot start this user's server again.
    expect(await refusal(fleet.servers.spawn("tokened"))).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE", exit: 3 });
    await expect(fleet.clients.connect("tokened", { gitHubToken })).resolves.toBeDefined();
  });

  it("clients.release stops the user's server only after all turns are done", async () => {
    await using model = await startHeldModel();
    await using own = await open(model.env);
    await own.clients.connect("alice");
    const session = await own.sessions.create({ user: "alice" });
    const reply = own.sessions.send(session, "!hold in time");
    await eventually("the turn", () => model.held() === 1);
    // An earlier version closed this process's client before the drain, which cut the turns of this process.
    const released = own.clients.release("alice");
    await eventually("the drain", async () => (await command.record("alice")).state === "draining");
    model.release();
    expect(await released).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
    expect((await reply).text).toBe("[turn 1] in time");
    expect(await fleet.servers.ofUser("alice")).toMatchObject({ state: "stopped", pid: null });
    expect((await refusal(fleet.clients.release("never"))).code).toBe("FLEET_NAME_NOT_FOUND");
  });
});

describe("sessions", () => {
  it("a session can be created, streamed, left, resumed through another fleet object and deleted", async () => {
    const session = await fleet.sessions.create({ user: "alice", purpose: "review", model: "gpt-5", ttl: "2h" });
    expect(session.sessionId).toMatch(/^[0-9a-f-]{36}$/);
    const deltas: string[] = [];
    const reply = await fleet.sessions.send(session, "a b c", { onDelta: (text) => deltas.push(text) });
    expect(reply.text).toBe("[turn 1] a b c");
    expect(reply.event?.data.content).toBe(reply.text);
    expect(deltas.length).toBeGreaterThan(1);
    expect(deltas.join("")).toBe(reply.text);
    await fleet.sessions.leave(session);

    await using second = await open();
    const again = await second.sessions.resume(session.sessionId, { user: "alice" });
    expect((await again.sendAndWait("next"))?.data.content).toBe("[turn 2] next");
    const view = await second.sessions.get(session.sessionId, { user: "alice" });
    expect(view).toMatchObject({ owner: "alice", purpose: "review", ttlMs: 7_200_000, state: "active" });
    await second.sessions.leave(again);
    expect((await second.sessions.delete([session.sessionId], { user: "alice" })).deleted).toEqual([session.sessionId]);
    expect((await refusal(fleet.sessions.resume(session.sessionId, { user: "alice" }))).code).toBe(
      "FLEET_SESSION_NOT_FOUND",
    );
  });

  it("a turn ends at its deadline or when its signal aborts, and the session takes the next prompt", async () => {
    const session = await fleet.sessions.create({ user: "alice" });
    expect(await refusal(fleet.sessions.send(session, "!delay 30000 x", { timeout: 200 }))).toMatchObject({
      code: "FLEET_TURN_TIMEOUT",
      exit: 6,
    });
    const abort = new AbortController();
    const reason = new Error("changed my mind");
    const turn = fleet.sessions.send(session, "!delay 30000 x", { signal: abort.signal });
    setTimeout(() => abort.abort(reason), 200);
    await expect(turn).rejects.toBe(reason);
    expect((await fleet.sessions.send(session, "next")).text).toMatch(/^\[turn \d\] next$/);
    await expect(fleet.sessions.send(session, "x", { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });

  it("a turn keeps its deadline when garbage is collected during the turn", async () => {
    // Node 20 collected the parts of AbortSignal.any() as garbage, and the turn then never ended.
    const session = await fleet.sessions.create({ user: "alice" });
    const abort = new AbortController();
    const turn = refusal(fleet.sessions.send(session, "!delay 20000 x", { timeout: 600, signal: abort.signal }));
    const { setFlagsFromString } = await import("node:v8");
    const { runInNewContext } = await import("node:vm");
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    for (let round = 0; round < 10; round++) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    // Without the deadline, the turn would end with its reply.
    expect((await turn).code).toBe("FLEET_TURN_TIMEOUT");
  });

  it("a refused call of the library rejects with a FleetError that has the exit code of the command", async () => {
    const session = await fleet.sessions.create({ user: "alice", sessionId: "typed" });
    const cases: [() => Promise<unknown>, string, number][] = [
      [() => fleet.sessions.create({ user: "../x" }), "FLEET_USAGE_INVALID", 2],
      [() => fleet.sessions.create({ user: "alice", sessionId: "a/b" }), "FLEET_USAGE_INVALID", 2],
      [() => fleet.sessions.create({ user: "alice", sessionId: "no.dots" }), "FLEET_USAGE_INVALID", 2],
      [() => fleet.sessions.create({ user: "alice", ttl: "10" }), "FLEET_USAGE_INVALID", 2],
      [() => fleet.sessions.create({ user: "bob", sessionId: "typed" }), "FLEET_SESSION_EXISTS", 5],
      [() => fleet.sessions.resume("typed", { user: "bob" }), "FLEET_SESSION_NOT_FOUND", 4],
      [() => fleet.sessions.resume("never", { user: "bob" }), "FLEET_SESSION_NOT_FOUND", 4],
      [() => fleet.clients.connectInfo("nobody"), "FLEET_NAME_NOT_FOUND", 4],
      [() => fleet.servers.get("nothing"), "FLEET_NAME_NOT_FOUND", 4],
      [() => fleet.sessions.send(session, "!fail nope"), "FLEET_TURN_FAILED", 7],
      [() => Fleet.open({ env: { ...command.env, COPILOTFLEET_HOME: "/etc/hostname" } }), "FLEET_STATE_UNSAFE", 3],
      [() => Fleet.open({ env: command.env, config: { ports: { from: 0 } } }), "FLEET_USAGE_INVALID", 2],
    ];
    for (const [work, code, exit] of cases) {
      const error = await refusal(work());
      expect(error).toBeInstanceOf(FleetError);
      expect(error).toMatchObject({ code, exit });
    }
    // The fleet lists no session with the id "no.dots", which the runtime would reject.
    expect((await fleet.sessions.list()).map(({ id }) => id)).not.toContain("no.dots");
  });

  it("send refuses a session that another fleet object opened", async () => {
    await using second = await open();
    const session = await fleet.sessions.create({ user: "alice" });
    await expect(second.sessions.send(session, "x")).rejects.toMatchObject({ code: "FLEET_USAGE_INVALID" });
  });
});

describe("Fleet", () => {
  it("closing a fleet leaves its servers running and its sessions in place", async () => {
    let client: CopilotClient;
    {
      await using scoped = await open();
      client = await scoped.clients.connect("alice");
      await scoped.sessions.create({ user: "alice", sessionId: "stays" });
      expect(client).toBeDefined();
    }
    expect(await fleet.servers.ofUser("alice")).toMatchObject({ state: "ready" });
    const views = await fleet.sessions.list({ user: "alice" });
    expect(views.find(({ id }) => id === "stays")).toMatchObject({ state: "idle" });
  });

  it("a fleet can be closed after its server has died, and closed twice", async () => {
    const scoped = await open();
    await scoped.sessions.create({ user: "alice" });
    await killServer("alice");
    await scoped.close();
    await scoped.close();
  });

  it("the library and the command see the same servers and sessions", async () => {
    const session = await fleet.sessions.create({ user: "alice", sessionId: "shared-with-command" });
    await fleet.sessions.send(session, "from the library");
    await fleet.sessions.leave(session);
    expect(await command.send("alice", "shared-with-command", "from the command")).toBe("[turn 2] from the command");
    const { servers } = await command.json<{ servers: { id: string }[] }>(["ps"]);
    expect((await fleet.servers.list()).map(({ id }) => id)).toEqual(servers.map(({ id }) => id));
  });
});
