import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, expectConsistent, type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";
import { directSession, directTurn, echoModel, heldModel, heldTurn } from "../fixtures/fleets/turns.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

async function states(fleet: FaultFleet): Promise<Record<string, string>> {
  return Object.fromEntries((await fleet.ps()).map(({ user, state }) => [user, state]));
}

async function becomes(fleet: FaultFleet, expected: Record<string, string>): Promise<void> {
  let seen: unknown;
  await eventually("the states", async () => {
    seen = await states(fleet);
    return JSON.stringify(seen) === JSON.stringify(expected);
  }).catch(() => expect(seen).toEqual(expected));
}

/**
 * Resolves when `serve` has checked all records twice. To detect a check, makes a record look as if a dead command had
 * left it, and waits until `serve` repairs the record.
 */
async function looked(fleet: FaultFleet, user: string): Promise<void> {
  for (let look = 0; look < 2; look++) {
    await fleet.tamper(user, (record) => {
      record.state = "draining";
    });
    await eventually("a look", async () => (await fleet.record(user)).state !== "draining");
  }
}

async function expectClosed(fleet: FaultFleet): Promise<void> {
  const refused = await fleet.run(["spawn", "--user", "late", "--json"]);
  expect(refused.code).toBe(5);
  expect(errorOf(refused).code).toBe("FLEET_POOL_DRAINING");
  expect(Object.values((await fleet.registry()).servers).map(({ user }) => user)).not.toContain("late");
}

it("drain closes the pool until --undo or the next serve, and that serve starts only the servers that drain stopped", async () => {
  const fleet = await faultFleet();
  await fleet.json(["spawn", "--user", "u", "--count", "3"]);
  await fleet.json(["stop", "--user", "u-3"]);
  expect(await fleet.json(["drain"])).toMatchObject({ stopped: [{ outcome: "drained" }, { outcome: "drained" }] });
  expect(await states(fleet)).toEqual({ "u-1": "stopped", "u-2": "stopped", "u-3": "stopped" });
  await expectClosed(fleet);
  await fleet.json(["drain", "--undo"]);
  await fleet.spawn("u-2");
  await fleet.json(["drain"]);
  await expectClosed(fleet);

  const serving = await serve(fleet);
  await becomes(fleet, { "u-1": "ready", "u-2": "ready", "u-3": "stopped" });
  expect(await serving.readyz()).toMatchObject({ status: 200 });
  await fleet.spawn("u-3");
  await fleet.json(["stop", "--user", "u-1"]);
  await serving.end();
  const next = await serve(fleet);
  await becomes(fleet, { "u-1": "stopped", "u-2": "ready", "u-3": "ready" });
  await next.end();
});

it("drain stops every server of a running serve until --undo, and /readyz names the drain as the reason", async () => {
  const fleet = await faultFleet({ COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
  const model = await heldModel();
  await fleet.json(["spawn", "--user", "u", "--count", "2"]);
  const serving = await serve(fleet);
  const reply = await heldTurn(await directSession(fleet, model, "direct", { user: "u-1" }), model);
  const draining = fleet.json(["drain"]);
  await becomes(fleet, { "u-1": "draining", "u-2": "stopped" });
  await expectClosed(fleet);
  const unready = await eventually("readyz", async () => {
    const { status, reasons } = await serving.readyz();
    return status === 503 ? reasons : null;
  });
  expect(unready).toEqual([expect.stringContaining("copilotfleet drain")]);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(await draining).toMatchObject({ stopped: [{ cut: [] }, { cut: [] }] });
  expect(serving.log().filter(({ level }) => level === "warn" || level === "error")).toEqual([]);
  await looked(fleet, "u-1");
  expect(await states(fleet)).toEqual({ "u-1": "stopped", "u-2": "stopped" });

  await fleet.json(["drain", "--undo"]);
  await becomes(fleet, { "u-1": "ready", "u-2": "ready" });
  await eventually("readyz", async () => (await serving.readyz()).ok);
  await serving.end();
});

it("drain of one server leaves the pool open, and serve does not start that server again", async () => {
  const fleet = await faultFleet();
  await fleet.json(["spawn", "--user", "u", "--count", "2"]);
  const serving = await serve(fleet);
  const { id } = await fleet.record("u-1");
  expect(await fleet.json(["drain", id])).toMatchObject({ stopped: [{ id, outcome: "drained", cut: [] }] });
  await looked(fleet, "u-1");
  expect(await states(fleet)).toEqual({ "u-1": "stopped", "u-2": "ready" });
  expect(await fleet.spawn("u-3")).toMatchObject({ state: "ready" });
  expect(await fleet.spawn("u-1")).toMatchObject({ state: "ready" });
  await serving.end();
});

it.each([false, true])(
  "a drain killed in the middle leaves the pool closed and its server ready (serve running: %s)",
  async (served) => {
    const fleet = await faultFleet();
    const model = await heldModel();
    const { pid } = await fleet.spawn("alice");
    const serving = served ? await serve(fleet) : null;
    const reply = await heldTurn(await directSession(fleet, model, "direct"), model);
    const { child, done } = fleet.start(["drain"]);
    await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
    child.kill("SIGKILL");
    await done;
    await becomes(fleet, { alice: "ready" });
    await expectClosed(fleet);
    model.release();
    expect(await reply()).toBe("[turn 1] done");
    expect(await fleet.ps()).toMatchObject([{ state: "ready", pid }]);
    await expectConsistent(fleet);
    await fleet.json(["drain", "--undo"]);
    expect(await fleet.json(["send", "direct", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
    await serving?.end();
  },
);

it("drain cuts a turn at the drain deadline, names the turn's session, and exits with 8", async () => {
  const fleet = await faultFleet();
  const model = await echoModel();
  await fleet.spawn("alice");
  await directTurn(await directSession(fleet, model, "direct"), model, 60_000);
  using took = new Stopwatch();
  const { code, stdout } = await fleet.run(["drain", "--drain-timeout", "500ms", "--json"]);
  const ms = took.ms;
  expect(code).toBe(8);
  expect(JSON.parse(stdout)).toMatchObject({ stopped: [{ outcome: "killed", cut: ["direct"] }] });
  // drain waits for neither the turn nor the default deadline.
  expect(ms).toBeLessThan(15_000);
});
