import { approveAll } from "@github/copilot-sdk";
import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

it("a front door that closes lets running turns end, refuses new ones and new clients, and then hangs up", async () => {
  await using at = await DoorFleet.open();
  const token = await at.token("ann");
  const client = await RawClient.as(at.url, token);
  await client.requestOk("session.create", { sessionId: "s" });
  await client.requestOk("session.create", { sessionId: "t" });
  await client.requestOk("session.send", { sessionId: "s", prompt: "!hold door last words" });
  const closing = at.door.close({ timeout: 40_000 });
  const late = await RawClient.open(at.url);
  expect(await late.request("connect", { token })).toMatchObject({
    error: { code: -32003, data: { code: "FLEET_POOL_DRAINING", retryable: true } },
  });
  expect(await client.request("session.send", { sessionId: "t", prompt: "one more" })).toMatchObject({
    error: { code: -32003, data: { code: "FLEET_POOL_DRAINING", retryable: true } },
  });
  expect((await client.request("ping")).error).toBeUndefined();
  at.model.letGo("door");
  expect(await closing).toEqual({ cut: 0 });
  await eventually("the end of the connection", () => client.closed);
  expect(client.events("s")).toContain("session.idle");
  expect(JSON.stringify(client.received)).toContain("last words");
  await expect(RawClient.open(at.url)).rejects.toThrow("ECONNREFUSED");
});

it("an SDK client gets the reply of a turn that ends while the front door drains", async () => {
  await using at = await DoorFleet.open();
  const client = await at.client("ann");
  const session = await client.createSession({ sessionId: "s", onPermissionRequest: approveAll });
  const reply = session.sendAndWait({ prompt: "!hold door last words" });
  await eventually("the turn", () => at.model.shown("!hold door last words") === 1);
  const closing = at.door.close({ timeout: 40_000 });
  at.model.letGo("door");
  expect((await reply)?.data.content).toContain("last words");
  expect(await closing).toEqual({ cut: 0 });
});

/**
 * A client with a session "s" that answers the questions of the front door, as an SDK does, only when `read` is called.
 */
async function reader(at: DoorFleet) {
  const client = await RawClient.as(at.url, await at.token("ann"));
  let asked = 0;
  const question = async () =>
    await eventually("a question", () => {
      const id = `fleet-read-${asked + 1}`;
      return client.closed || client.received.some((message) => message.id === id) ? id : undefined;
    });
  const read = async () => {
    client.send({ id: await question(), error: { code: -32601, message: "Unhandled method" } });
    asked++;
  };
  await client.requestOk("session.create", { sessionId: "s" });
  await read();
  return { client, question, read };
}

it("a front door that closes hangs up only after a client has read the end of its turn", async () => {
  await using at = await DoorFleet.open({ clock: new TestClock() });
  const { client, question, read } = await reader(at);
  await client.requestOk("session.send", { sessionId: "s", prompt: "!hold door last words" });
  const closing = at.door.close({ timeout: 40_000 });
  at.model.letGo("door");
  await question();
  expect([client.events("s").at(-1), client.closed]).toEqual(["session.idle", false]);
  await read();
  await read();
  expect(await closing).toEqual({ cut: 0 });
  await client.end();
});

it("a front door that closes does not wait for ever until a client reads", async () => {
  const clock = new TestClock();
  await using at = await DoorFleet.open({ clock });
  const { client, question } = await reader(at);
  const closing = at.door.close({ timeout: 40_000 });
  await question();
  clock.jump(5_000);
  clock.runDue();
  expect(await closing).toEqual({ cut: 0 });
  await client.end();
});

it("a front door that closes waits for the answer to a request", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  const { pid } = await at.serverOf("ann");
  process.kill(pid, "SIGSTOP");
  const answer = client.requestOk("session.getMessages", { sessionId: "s" });
  await client.request("made.up/label");
  const closing = at.door.close({ timeout: 40_000 });
  process.kill(pid, "SIGCONT");
  await answer;
  expect(await closing).toEqual({ cut: 0 });
});

it("a drained front door keeps its address and refuses clients until it closes", async () => {
  await using at = await DoorFleet.open();
  const { address } = at.door;
  const token = await at.token("ann");
  expect(await at.door.drain()).toEqual({ cut: 0 });
  const late = await RawClient.open(at.url);
  expect(await late.request("connect", { token })).toMatchObject({
    error: { data: { code: "FLEET_POOL_DRAINING", retryable: true } },
  });
  await expect(at.fleet.doors.open({ listen: address })).rejects.toMatchObject({ code: "FLEET_ADDRESS_TAKEN" });
  await at.door.close();
  await using next = await at.fleet.doors.open({ listen: address });
  expect(next.address).toEqual(address);
});

it("a front door that closes cuts a turn that is still running at the deadline, and returns the number of cut turns", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  await client.requestOk("session.send", { sessionId: "s", prompt: "!delay 30000 x" });
  using watch = new Stopwatch();
  expect(await at.door.close({ timeout: 300 })).toEqual({ cut: 1 });
  expect(watch.ms).toBeLessThan(2_000);
  await eventually("the end of the connection", () => client.closed);
});

it("a front door that closes refuses a waiting prompt, and does not wait for the prompt's turn", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  const lease = await at.fleet.leases.acquire("s", { user: "ann" });
  client.send({ id: 1, method: "session.send", params: { sessionId: "s", prompt: "waits" } });
  await client.requestOk("ping");
  await eventually("it waits", () => at.door.turns === 1);
  using watch = new Stopwatch();
  expect(await at.door.close({ timeout: 20_000 })).toEqual({ cut: 0 });
  expect(watch.ms).toBeLessThan(5_000);
  await client.end();
  expect(client.received.find(({ id }) => id === 1)).toMatchObject({
    error: { code: -32003, data: { code: "FLEET_POOL_DRAINING", retryable: true } },
  });
  await lease.release();
});

it("after a front door closes, a new front door opens on its port and resumes its sessions", async () => {
  await using at = await DoorFleet.open();
  const token = await at.token("ann");
  const client = await RawClient.as(at.url, token);
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "one");
  const { host, port } = at.door.address;
  await at.door.close({ timeout: 5_000 });
  await using next = await at.fleet.doors.open({ listen: { host, port } });
  const again = await RawClient.as(`${host}:${next.address.port}`, token);
  expect(await again.request("session.resume", { sessionId: "s" })).toMatchObject({ result: { sessionId: "s" } });
  expect(await again.turn("s", "two")).toMatchObject({ result: {} });
});

it("opening a front door rejects with FLEET_ADDRESS_TAKEN when another process listens on its address", async () => {
  await using at = await DoorFleet.open();
  const { host, port } = at.door.address;
  await expect(at.fleet.doors.open({ listen: { host, port } })).rejects.toMatchObject({
    code: "FLEET_ADDRESS_TAKEN",
    message: `serve cannot listen on "${host}:${port}" (serve.listen): another process listens there`,
  });
});

it("the front door reports the method and the outcome of each request, without its content", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "unspeakable");
  await client.request("made.up/label", {});
  await client.request("runtime.shutdown", {});
  await client.request("session.abort", { sessionId: "other" });
  await client.request("session.rewind", {});
  const seen = at.requests.map(({ method, outcome, code, user }) => ({ method, outcome, code, user }));
  expect(seen).toEqual([
    { method: "session.create", outcome: "answered", code: undefined, user: "ann" },
    { method: "session.send", outcome: "answered", code: undefined, user: "ann" },
    { method: "unknown", outcome: "denied", code: "FLEET_METHOD_UNKNOWN", user: "ann" },
    { method: "runtime.shutdown", outcome: "denied", code: "FLEET_METHOD_DENIED", user: "ann" },
    { method: "session.abort", outcome: "denied", code: "FLEET_SESSION_NOT_FOUND", user: "ann" },
    { method: "unknown", outcome: "denied", code: "FLEET_METHOD_UNKNOWN", user: "ann" },
  ]);
  for (const { ms } of at.requests) expect(ms).toBeGreaterThanOrEqual(0);
  expect(JSON.stringify([at.requests, at.events])).not.toContain("unspeakable");
});
