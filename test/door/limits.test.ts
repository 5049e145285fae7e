import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Shares } from "../../src/door/state/shares.js";
import { eventually } from "../fixtures/eventually.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const reached = (limit: string, message?: string) => ({
  code: -32003,
  message: message ?? expect.any(String),
  data: { code: "FLEET_LIMIT_REACHED", retryable: true, limit },
});
const MB = 1024 * 1024;

/** Opens a connection, and resolves with the answer to its `connect`. */
async function tryToConnect(at: DoorFleet, token: string) {
  const client = await RawClient.open(at.url);
  return { client, answer: await client.request("connect", { token }) };
}

describe("the front door, with one user's connections,", () => {
  it("accepts 16 of one user's 127 connections to a shared server, and still accepts other users", async () => {
    await using at = await DoorFleet.open({ config: { isolation: "shared" } });
    const [bob, alice] = [await at.token("bob"), await at.token("alice")];
    const tried = [];
    for (let index = 0; index < 127; index++) tried.push(await tryToConnect(at, bob));
    const [letIn, refused] = [tried.slice(0, 16), tried.slice(16)];
    expect(letIn.filter(({ answer }) => answer.error !== undefined)).toEqual([]);
    const message =
      "A user may have 16 connections to the front door (limits.default.connections), and the limit is reached.";
    for (const { answer } of refused) expect(answer.error).toEqual(reached("connections", message));
    await Promise.all(refused.map(async ({ client }) => await client.end()));
    expect(at.events.filter(({ limit }) => limit === "connections")).toHaveLength(111);
    expect(at.events.map(({ event }) => event)).not.toContain("failed");

    const { client, answer } = await tryToConnect(at, alice);
    expect(answer.error).toBeUndefined();
    await client.requestOk("session.create", { sessionId: "alices" });
    expect(await client.turn("alices", "hi")).toMatchObject({ result: {} });

    letIn[0]?.client.socket.destroy();
    await eventually("room for bob", async () => (await tryToConnect(at, bob)).answer.error === undefined);
  });

  it("limits a user's direct and relayed connections separately, and the connections of all users together", () => {
    const most = { connections: 2, sessions: null };
    const shares = new Shares({ default: most, total: { ...most, connections: 5 } });
    const bobs = [shares.admit("bob", false), shares.admit("bob", false)];
    expect(() => shares.admit("bob", false)).toThrow(expect.objectContaining({ limit: "connections" }));
    for (let count = 0; count < 2; count++) shares.admit("bob", true);
    expect(() => shares.admit("bob", true)).toThrow(expect.objectContaining({ limit: "connections" }));
    shares.admit("alice", false);
    expect(() => shares.admit("carol", false)).toThrow(
      expect.objectContaining({ code: "FLEET_LIMIT_REACHED", exit: 6, limit: "total.connections" }),
    );
    // A second release has no effect.
    for (let count = 0; count < 2; count++) bobs[0]?.release();
    shares.admit("carol", false);
    expect(() => shares.admit("dave", false)).toThrow(expect.objectContaining({ limit: "total.connections" }));
  });
});

describe("the front door, with one user's requests and bytes,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    const fixedLimits = { default: { requestsInFlight: 5, unreadBytes: MB }, total: { unreadBytes: 1.5 * MB } };
    at = await DoorFleet.open({ fixedLimits });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  /** Opens a connection and sends the beginning of a request. */
  async function unfinished(user: string, bytes: number): Promise<RawClient> {
    const client = await RawClient.as(at.url, await at.token(user));
    client.bytes(`Content-Length: ${8 * MB}\r\n\r\n{"jsonrpc":"2.0","id":1,"method":"ping","params":{"message":"`);
    client.bytes("x".repeat(bytes));
    return client;
  }

  it("answers a user's requests up to the limit of requests in flight, and refuses those beyond it", async () => {
    const client = await RawClient.as(at.url, await at.token("alice"));
    const frames = Array.from({ length: 8 }, (_, id) => {
      const body = JSON.stringify({ jsonrpc: "2.0", id, method: "ping", params: {} });
      return `Content-Length: ${body.length}\r\n\r\n${body}`;
    });
    client.bytes(frames.join("")); // they arrive together, before any of them is answered
    const answers = [];
    for (let id = 0; id < 8; id++) answers.push((await client.answerTo(id)).error);
    expect(answers).toEqual([...Array(5).fill(undefined), ...Array(3).fill(reached("requestsInFlight"))]);
    for (let count = 0; count < 8; count++) expect((await client.request("ping")).error).toBeUndefined();
    const abort = await client.request("session.abort", { sessionId: "nobodys" });
    expect(abort.error?.data?.code).toBe("FLEET_SESSION_NOT_FOUND");
  });

  it("refuses a long request, but not a short one, while an unfinished frame nearly fills its user's byte limit", async () => {
    const first = await unfinished("bob", MB - 20_000);
    const second = await RawClient.as(at.url, await at.token("bob"));
    const message = "y".repeat(40_000);
    const error = await eventually("the refusal", async () => (await second.request("ping", { message })).error);
    expect(error).toEqual(reached("unreadBytes"));
    expect((await second.request("ping")).error).toBeUndefined();
    const other = await RawClient.as(at.url, await at.token("alice"));
    expect((await other.request("ping", { message })).error).toBeUndefined();
    first.socket.destroy();
    await eventually("room", async () => (await second.request("ping", { message })).error === undefined);
  });

  it("closes only the connection whose unfinished frame exceeds its user's limit of unread bytes", async () => {
    const other = await RawClient.as(at.url, await at.token("carol"));
    const client = await unfinished("carol", 1.2 * MB);
    expect((await client.answerTo(null)).error).toEqual(reached("unreadBytes"));
    await client.end();
    expect((await other.request("ping")).error).toBeUndefined();
  });

  it("closes a connection whose unfinished frame exceeds the limit of unread bytes for all users together", async () => {
    const first = await unfinished("dave", 0.9 * MB);
    await eventually("its bytes", async () => {
      const second = await unfinished("erin", 0.9 * MB);
      const { error } = await second.answerTo(null);
      expect(error).toEqual(reached("total.unreadBytes"));
      return true;
    });
    first.socket.destroy();
  });
});

it("the front door reports a prompt that it refuses because of a limit on turns, so that metrics count it", async () => {
  await using at = await DoorFleet.open({ config: { limits: { default: { turnsPerMinute: 1 } } } });
  const client = await RawClient.as(at.url, await at.token("alice"), true);
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", "hi");
  const { error } = await client.request("session.send", { sessionId: "s", prompt: "again" });
  expect(error).toMatchObject({ data: { code: "FLEET_LIMIT_REACHED", limit: "turnsPerMinute" } });
  expect(at.events.filter(({ limit }) => limit !== undefined)).toMatchObject([
    { event: "denied", user: "alice", method: "session.send", sessionId: "s", limit: "turnsPerMinute" },
  ]);
  client.socket.destroy();
});

describe("the fleet, with one user's sessions,", () => {
  it("limits a user's sessions at the front door and in the library, and allows a new one after a deletion", async () => {
    const limits = { default: { sessions: 3 } };
    await using at = await DoorFleet.open({ config: { limits } });
    const client = await RawClient.as(at.url, await at.token("alice"), true);
    const created = await Promise.all(
      Array.from({ length: 6 }, async (_, index) => await client.request("session.create", { sessionId: `s${index}` })),
    );
    expect(created.filter(({ error }) => error === undefined)).toHaveLength(3);
    const message = "A user may have 3 sessions (limits.default.sessions), and the limit is reached.";
    for (const { error } of created) if (error !== undefined) expect(error).toEqual(reached("sessions", message));
    expect(await at.store.sessions.list()).toHaveLength(3);
    expect(at.events.filter(({ limit }) => limit === "sessions")).toHaveLength(3);

    const [{ id = "" } = {}] = await at.store.sessions.list();
    await client.turnOk(id, "hi");
    expect((await client.request("sessions.fork", { sessionId: id })).error).toEqual(reached("sessions"));
    await expect(at.fleet.sessions.create({ user: "alice" })).rejects.toMatchObject({
      code: "FLEET_LIMIT_REACHED",
      exit: 6,
      retryable: true,
      limit: "sessions",
      suggestions: ["copilotfleet list --user USER", "copilotfleet delete SESSION", "Raise limits.default.sessions."],
    });
    await at.fleet.sessions.delete([id]);
    await at.fleet.sessions.leave(await at.fleet.sessions.create({ user: "alice" }));
    client.socket.destroy();
  });
});
