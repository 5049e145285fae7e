import { userInfo } from "node:os";
import { afterAll, beforeAll, expect, it, onTestFinished } from "vitest";
import type { FleetEvent } from "../../src/base/event.js";
import { Fleet } from "../../src/fleet/fleet.js";
import { TestFleet } from "../fixtures/commands/cli.js";

let fleet: TestFleet;
beforeAll(() => {
  fleet = new TestFleet();
});
afterAll(async () => await fleet.end());

const events = async (...flags: string[]): Promise<FleetEvent[]> =>
  ((await fleet.json(["events", ...flags])) as { events: FleetEvent[] }).events;

it("the audit log has token, session, turn, server and command events with their actors, but no prompts", async () => {
  await fleet.run(["token", "issue", "--user", "alice"]);
  await fleet.run(["create", "--user", "alice", "--id", "demo", "--prompt", "hello"]);
  await fleet.run(["delete", "demo", "--yes"]);
  await fleet.run(["stop", "--all"]);
  const found = await events();
  const types = found.map(({ type }) => type);
  for (const type of [
    "token.issued",
    "session.created",
    "server.started",
    "turn.begun",
    "turn.ended",
    "session.deleted",
    "server.drained",
    "server.stopped",
  ])
    expect(
      types.filter((each) => each === type),
      type,
    ).toHaveLength(1);
  const commands = found.filter(({ type }) => type === "command.run");
  expect(commands.map(({ detail }) => detail)).toEqual(["token issue", "create", "delete", "stop"]);
  for (const { actor } of found) expect(actor).toMatchObject({ via: "command", os: userInfo().username });
  expect(JSON.stringify(found)).not.toContain("hello");
  expect(await events("--user", "bob")).toEqual([]);
  expect((await events("--user", "alice", "--type", "turn.ended"))[0]).toMatchObject({
    sessionId: "demo",
    outcome: "completed",
  });
  const { stdout } = await fleet.run(["events"]);
  expect(stdout.split("\n").filter((line) => line.includes("token.issued"))).toHaveLength(1);
  expect(await fleet.json(["events", "verify"])).toMatchObject({ ok: true, events: found.length, brokenAt: null });
});

it("the audit log records a lease takeover before it happens, and again if the takeover fails", async () => {
  const library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
  onTestFinished(async () => await library.close());
  await library.sessions.leave(await library.sessions.create({ user: "alice", sessionId: "locked" }));
  const options = { user: "alice", steal: { reason: "mine" } };
  const work = new Error("the work failed");
  await expect(library.leases.hold("locked", options, async () => await Promise.reject(work))).rejects.toBe(work);
  const signal = AbortSignal.abort();
  await expect(library.leases.acquire("locked", { ...options, signal })).rejects.toThrow();
  await expect(library.leases.acquire("locked", { ...options, ttl: "1ms" })).rejects.toThrow();
  const stolen = await library.events.list({ type: "session.stolen" });
  expect(stolen.map(({ outcome, detail }) => `${outcome}: ${detail}`)).toEqual([
    "ok: mine",
    "ok: mine",
    "failed: mine",
  ]);
});
