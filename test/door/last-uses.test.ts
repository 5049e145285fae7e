import { expect, it } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

it("closing the front door records every turn of its clients", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "one");
  await client.turnOk("s", "two");
  const beforeLastMs = Date.now();
  await client.turnOk("s", "three");
  await at.door.close({ timeout: 20_000 });
  const record = await at.store.sessions.read("s");
  expect(record).toMatchObject({ turns: 3 });
  expect(Date.parse(record?.lastUsedAt ?? "")).toBeGreaterThanOrEqual(beforeLastMs);
});

it("closing the library's Fleet object records every turn that the program ran", async () => {
  await using at = await DoorFleet.open();
  const config = { ports: at.ports, provider: { type: "echo" as const } };
  const library = await Fleet.open({ env: at.env, cwd: at.folder, config });
  const session = await library.sessions.create({ user: "ann", sessionId: "s" });
  for (const prompt of ["one", "two", "three"]) await library.sessions.send(session, prompt);
  await library.close();
  expect(await at.store.sessions.read("s")).toMatchObject({ turns: 3 });
});

it("the list of sessions shows the time of a turn that has just ended in the same process", async () => {
  await using at = await DoorFleet.open();
  const session = await at.fleet.sessions.create({ user: "ann", sessionId: "s" });
  for (const prompt of ["one", "two"]) await at.fleet.sessions.send(session, prompt);
  const beforeLastMs = Date.now();
  await at.fleet.sessions.send(session, "three");
  const [listed] = await at.fleet.sessions.list({ user: "ann" });
  expect(Date.parse(listed?.lastUsedAt ?? "")).toBeGreaterThanOrEqual(beforeLastMs);
  const shown = await at.fleet.sessions.get("s", { user: "ann" });
  expect(Date.parse(shown.lastUsedAt)).toBeGreaterThanOrEqual(beforeLastMs);
});
