import { expect, it } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import type { Served } from "../../src/cli/run/serve.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, fake, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve, startServe } from "../fixtures/fleets/serve.js";
import {
  directSession,
  directTurn,
  echoModel,
  heldModel,
  heldTurn,
  isInTurn,
  openLibrary,
} from "../fixtures/fleets/turns.js";
import { killed } from "../fixtures/processes.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/** Resolves with "answered", or with the error's code if the fleet refuses or cuts the turn. */
async function outcome(turn: Promise<unknown>): Promise<string> {
  return await turn.then(
    () => "answered",
    (error: unknown) => (isFleetError(error) ? error.code : String(error)),
  );
}

it("a draining serve lets running turns of commands, the library and clients end, and refuses new turns", async () => {
  const model = await heldModel();
  const fleet = await faultFleet({ ...model.env, COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
  const library = await openLibrary(fleet);
  await fleet.spawn("alice");
  await fleet.spawn("bob");
  const serving = await serve(fleet);
  await fleet.json(["create", "--user", "alice", "--id", "by-command"]);
  const open = await library.sessions.create({ user: "alice", sessionId: "by-library" });
  const direct = await directSession(fleet, model, "direct");
  const byCommand = fleet.json(["send", "by-command", "!hold done", "--user", "alice"]);
  const byLibrary = library.sessions.send(open, "!hold done");
  const byClient = await heldTurn(direct, model);
  await eventually("all turns", () => model.held() === 3);
  for (const id of ["by-command", "by-library"]) expect(await isInTurn(fleet, "alice", id)).toBe(true);

  serving.kill("SIGTERM");
  await serving.logged("draining 2 servers");
  expect(await serving.readyz()).toEqual({ status: 503, ok: false, reasons: ["the pool is being drained"] });
  expect(await serving.healthz()).toMatchObject({ status: 200, ok: true });
  expect(await serving.metric("draining")).toBe(1);
  const refused = await Promise.all([
    fleet.run(["spawn", "--user", "carol", "--json"]),
    fleet.run(["create", "--user", "alice", "--json"]),
    fleet.run(["send", "by-library", "hi", "--user", "alice", "--json"]),
  ]);
  for (const { code, stdout, stderr } of refused) {
    expect({ code, stderr }).toEqual({ code: 5, stderr: "" });
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: "FLEET_POOL_DRAINING", retryable: true } });
    expect(stdout).toContain(`process ${serving.pid}`);
  }
  expect(await outcome(library.sessions.create({ user: "bob" }))).toBe("FLEET_POOL_DRAINING");
  expect((await fleet.ps()).map(({ user, state }) => [user, state])).toEqual([
    ["alice", "draining"],
    ["bob", "stopped"],
  ]);
  const { sessions } = await fleet.json<{ sessions: { id: string }[] }>(["list"]);
  expect(sessions.map(({ id }) => id).sort()).toEqual(["by-command", "by-library", "direct"]);
  expect(model.held()).toBe(3);
  model.release();

  expect(await byCommand).toMatchObject({ reply: "[turn 1] done" });
  expect(await byLibrary).toMatchObject({ text: "[turn 1] done" });
  expect(await byClient()).toBe("[turn 1] done");
  const { code, stdout } = await serving.done;
  expect({ code, stdout }).toMatchObject({ code: 0 });
  expect(serving.log().at(-1)).toMatchObject({ msg: "drained", servers: 2, cut: [] });
  expect(fleet.processes()).toEqual([]);

  // The next serve starts the servers that ran before, and the histories are complete.
  const next = await serve(fleet);
  await eventually("the servers", async () => (await fleet.ps()).every(({ state }) => state === "ready"));
  for (const id of ["by-command", "by-library", "direct"]) {
    expect(await fleet.json(["send", id, "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
  }
  expect(await library.sessions.send(open, "and again")).toMatchObject({ text: "[turn 3] and again" });
  expect((await next.end()).code).toBe(0);
});

it("serve cuts only turns that outlast the drain deadline, lists their sessions, and exits with 8", async () => {
  const fleet = await faultFleet();
  const model = await echoModel();
  const library = await openLibrary(fleet);
  await fleet.spawn("alice");
  await fleet.spawn("bob");
  const serving = await serve(fleet, { args: ["--json", "--drain-timeout", "4s"] });
  const [long, short, idle] = await Promise.all(
    ["long", "short", "idle"].map((sessionId) => library.sessions.create({ user: "alice", sessionId })),
  );
  if (long === undefined || short === undefined || idle === undefined) throw new Error("unreachable");
  const cut = outcome(library.sessions.send(long, "!delay 60000 never"));
  const answered = library.sessions.send(short, "!delay 1000 done");
  await library.sessions.send(idle, "hi");
  await directTurn(await directSession(fleet, model, "direct", { user: "bob" }), model, 60_000);
  await eventually("the turn", () => isInTurn(fleet, "alice", "long"));
  const begun = performance.now();
  using took = new Stopwatch();
  const { code, stdout } = await serving.end();
  expect(took.ms).toBeLessThan(4_000 + 5_000);
  expect(code).toBe(8);
  expect(performance.now() - begun).toBeGreaterThan(4_000);
  const { stopped, failed } = JSON.parse(stdout) as Served;
  expect(failed).toEqual([]);
  expect(stopped.map(({ outcome, cut }) => [outcome, cut]).sort()).toEqual([
    ["killed", ["direct"]],
    ["killed", ["long"]],
  ]);
  expect(serving.log().filter(({ level }) => level === "error")).toHaveLength(2);
  expect(await cut).toBe("FLEET_TURN_CUT");
  expect(await answered).toMatchObject({ text: "[turn 1] done" });
  expect(fleet.processes()).toEqual([]);
});

it.each(["SIGTERM", "SIGINT"] as const)(
  "serve ends everything within two seconds of a second signal (%s)",
  async (second) => {
    const fleet = await faultFleet();
    const library = await openLibrary(fleet);
    const hung = (await fleet.spawn("bob")).pid ?? 0;
    const serving = await serve(fleet, { args: ["--json"] });
    const [busy, idle] = await Promise.all(
      ["busy", "idle"].map((sessionId) => library.sessions.create({ user: "alice", sessionId })),
    );
    if (busy === undefined || idle === undefined) throw new Error("unreachable");
    await library.sessions.send(idle, "hi");
    const cut = outcome(library.sessions.send(busy, "!delay 60000 never"));
    await eventually("the turn", () => isInTurn(fleet, "alice", "busy"));
    process.kill(hung, "SIGSTOP");
    serving.kill("SIGTERM");
    await serving.logged(/^draining \d servers$/);
    using took = new Stopwatch(serving.pid);
    serving.kill(second);
    const { code, stdout } = await serving.done;
    expect(took.ms).toBeLessThan(2_000);
    expect(code).toBe(8);
    const { stopped } = JSON.parse(stdout) as Served;
    expect(stopped.flatMap(({ cut }) => cut)).toEqual(["busy"]);
    expect(await cut).toBe("FLEET_TURN_CUT");
    expect(fleet.processes()).toEqual([]);
  },
);

it("serve exits with 0 after a second signal that cut no turn", async () => {
  const fleet = await faultFleet();
  const library = await openLibrary(fleet);
  const serving = await serve(fleet, { args: ["--json"] });
  for (const sessionId of ["one", "two"])
    await library.sessions.send(await library.sessions.create({ user: "alice", sessionId }), "hi");
  serving.kill("SIGTERM");
  serving.kill("SIGINT");
  const { code, stdout } = await serving.done;
  expect((JSON.parse(stdout) as Served).stopped).toMatchObject([{ cut: [] }]);
  expect(code).toBe(0);
});

it("serve ends within seconds of a signal that comes during the slow start of a server", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const { pid, id } = await fleet.spawn("alice");
  const serving = await serve(fleet, { env: { COPILOTFLEET_RUNTIME_PATH: fake("silent.mjs") } });
  await killed(pid);
  await serving.logged(`starting server ${id}`);
  await eventually("the start", () => fleet.processes().length > 0);
  using took = new Stopwatch(serving.pid);
  const { code } = await serving.end();
  expect(took.ms).toBeLessThan(3_000);
  expect(code).toBe(0);
  expect(fleet.processes()).toEqual([]);
  // The server ran before, so the next serve starts it again.
  const next = await serve(fleet);
  await eventually("the server", async () => (await fleet.record("alice")).state === "ready");
  await next.end();
});

it("serve ends on a signal at any moment of its own start", async () => {
  const fleet = await faultFleet();
  await fleet.spawn("alice");
  for (let ms = 100; ms <= 500; ms += 80) {
    const starting = startServe(fleet);
    const timer = setTimeout(() => starting.kill("SIGTERM"), ms);
    const { code, signal, stderr } = await starting.done;
    clearTimeout(timer);
    // The three outcomes: the signal came before serve handled signals, before it served, or while it served.
    expect(["SIGTERM null", "null 143", "null 0"], stderr).toContain(`${signal} ${code}`);
    expect(stderr).not.toContain('"level":"error"');
    await expectConsistent(fleet);
  }
});
