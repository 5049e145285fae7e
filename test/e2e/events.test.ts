import { userInfo } from "node:os";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { FleetEvent } from "../../src/model/events/event.js";
import { TestFleet } from "../fixtures/commands/cli.js";

let fleet: TestFleet;
beforeAll(() => {
  fleet = new TestFleet();
});
afterAll(async () => await fleet.end());

const events = async (...flags: string[]): Promise<FleetEvent[]> =>
  ((await fleet.json(["events", ...flags])) as { events: FleetEvent[] }).events;

it("the audit log shows who did what: a token, a session, its turn, its server, and the commands", async () => {
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
    outcome: "ok",
  });
  const { stdout } = await fleet.run(["events"]);
  expect(stdout.split("\n").filter((line) => line.includes("token.issued"))).toHaveLength(1);
  expect(await fleet.json(["events", "verify"])).toMatchObject({ ok: true, events: found.length, brokenAt: null });
});
