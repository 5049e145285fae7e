import { renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { approveAll, type CopilotSession, type SessionEvent } from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { sessionFolderPath } from "../../src/runtime/history/session-state.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { innerPidOf, killed } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

const say = async (session: CopilotSession, prompt: string) =>
  (await session.sendAndWait(prompt, 20_000))?.data.content;

describe("the front door, when a session's server ends,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open();
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it("reopens a session with its tools for the next prompt on the same connection after its server died", async () => {
    const client = await at.client("ann");
    const session = await client.createSession({
      onPermissionRequest: approveAll,
      tools: [
        { name: "mine", description: "x", parameters: { type: "object" }, handler: async () => "from the client" },
      ],
    });
    expect(await say(session, "one")).toBe("you said: one");
    const before = at.events.length;
    await killed((await at.serverOf("ann")).pid);
    expect(await say(session, "!tool mine {}")).toBe("tool said: from the client");
    const said = (await session.getEvents()).filter(({ type }) => type === "user.message");
    expect(said).toHaveLength(2);
    expect(at.events.slice(before).filter(({ event }) => event === "closed")).toEqual([]);
  });

  it("ends a turn with an error within 2 s when its server dies, and accepts the next prompt", async () => {
    const client = await at.client("ben");
    const session = await client.createSession({ onPermissionRequest: approveAll });
    const events: SessionEvent[] = [];
    session.on((event) => void events.push(event));
    await session.send("!delay 30000 never");
    await eventually("the turn", () => events.some(({ type }) => type === "assistant.turn_start"));
    const { pid } = await at.serverOf("ben");
    using watch = new Stopwatch();
    process.kill(pid, "SIGKILL");
    await eventually("the error", () => events.some(({ type }) => type === "session.idle"));
    expect(watch.ms).toBeLessThan(2_000);
    expect(events.map(({ type }) => type).slice(-2)).toEqual(["session.error", "session.idle"]);
    expect(events.at(-2)).toMatchObject({ data: { message: expect.stringContaining("The server ended") } });
    expect(await say(session, "again")).toBe("you said: again");
  });

  it("answers open requests with a retryable FLEET_SERVER_LOST when their server dies", async () => {
    const id = unused("waiting");
    const before = at.requests.length;
    const client = await RawClient.as(at.url, await at.token("cid"));
    await client.requestOk("session.create", { sessionId: id });
    await client.requestOk("session.send", { sessionId: id, prompt: "!delay 30000 never" });
    const waiting = client.request("session.tasks.waitForPending", { sessionId: id });
    await client.requestOk("ping");
    process.kill((await at.serverOf("cid")).pid, "SIGKILL");
    expect(await waiting).toMatchObject({
      error: { code: -32003, data: { code: "FLEET_SERVER_LOST", retryable: true } },
    });
    expect(at.requests.slice(before)).toContainEqual(
      expect.objectContaining({ method: "session.tasks.waitForPending", outcome: "lost" }),
    );
  });

  it("reopens a session for a listener when another client's prompt has restarted the session's server", async () => {
    const id = unused("heard");
    const token = await at.token("dan");
    const [talker, listener] = [await RawClient.as(at.url, token), await RawClient.as(at.url, token)];
    await talker.requestOk("session.create", { sessionId: id });
    await talker.turnOk(id, "one");
    await listener.requestOk("session.resume", { sessionId: id });
    await killed((await at.serverOf("dan")).pid);
    await talker.turnOk(id, "two");
    await eventually(
      "the listener is back",
      () => at.events.filter(({ event, sessionId }) => event === "session-reopened" && sessionId === id).length >= 2,
    );
    const before = listener.events(id).length;
    await talker.turnOk(id, "three");
    await eventually("the event", () => listener.events(id).slice(before).includes("session.idle"));
  });

  it("lets a running turn end before the server is restarted, and sends the next prompt to the new process", async () => {
    const [user, sessionId] = [unused("ida"), unused("drained")];
    const client = await RawClient.as(at.url, await at.token(user));
    await client.requestOk("session.create", { sessionId });
    await client.turnOk(sessionId, "one");
    const { id, pid } = await at.serverOf(user);
    await client.requestOk("session.send", { sessionId, prompt: `!hold ${sessionId}` });
    const restarted = at.fleet.servers.restart([id]);
    await eventually("the drain", async () => (await at.fleet.servers.get(id)).state === "draining");
    // This client connects before the turn ends. It may be admitted at once, or wait for the new process.
    const other = await RawClient.open(at.url);
    other.send({ id: 1, method: "connect", params: { token: await at.token(user), supportedTaskKinds: [] } });
    await client.requestOk("ping");
    at.model.letGo(sessionId);
    await eventually(
      "the end of the turn",
      () => client.events(sessionId).filter((type) => type === "session.idle").length === 2,
    );
    const next = client.turn(sessionId, "next");
    expect((await restarted).stopped).toEqual([{ id, outcome: "drained", cut: [] }]);
    expect(await next).toMatchObject({ result: {} });
    expect((await at.serverOf(user)).pid).not.toBe(pid);
    expect(client.events(sessionId)).not.toContain("session.error");
    expect(JSON.stringify(client.received)).toContain("you said: next");
    expect((await other.answerTo(1)).error).toBeUndefined();
    expect((await other.request("ping")).error).toBeUndefined();
  });

  it("reopens an evicted session for the client's next request, whether or not that is a prompt", async () => {
    const client = await at.client("eve");
    const session = await client.createSession({ onPermissionRequest: approveAll });
    await say(session, "one");
    const evicted = await eventually("the eviction", async () => {
      const result = await at.fleet.sessions.evict({ ids: [session.sessionId] });
      return result.evicted.length > 0 && result;
    });
    expect(evicted.evicted).toEqual([session.sessionId]);
    expect(await say(session, "two")).toBe("you said: two");
    await at.fleet.sessions.evict({ ids: [session.sessionId] });
    expect(await session.rpc.name.get()).toBeDefined();
  });

  it("sends a listener the events of an evicted session again when another client continues it", async () => {
    const id = unused("shown");
    const token = await at.token("jon");
    const [talker, listener] = [await RawClient.as(at.url, token), await RawClient.as(at.url, token)];
    await talker.requestOk("session.create", { sessionId: id });
    await talker.turnOk(id, "one");
    await listener.requestOk("session.resume", { sessionId: id });
    await eventually("the eviction", async () => (await at.fleet.sessions.evict({ ids: [id] })).evicted.length > 0);
    await eventually("both know", () =>
      [talker, listener].every((client) => client.events(id).includes("session.shutdown")),
    );
    const before = listener.events(id).length;
    // The listener is attached again during the first of these turns, and may miss the events of that turn.
    await eventually("the events of a turn", async () => {
      await talker.turnOk(id, "on");
      return listener.events(id).slice(before).includes("user.message");
    });
  });

  it("ends a turn with an error when another client unloads the session during the turn", async () => {
    const id = unused("cut");
    const token = await at.token("hal");
    const client = await RawClient.as(at.url, token);
    await client.requestOk("session.create", { sessionId: id });
    await client.turnOk(id, "one");
    await client.requestOk("session.send", { sessionId: id, prompt: "!delay 30000 x" });
    const other = await RawClient.as(at.url, token);
    const idles = () => client.events(id).filter((type) => type === "session.idle").length;
    await other.requestOk("sessions.close", { sessionId: id });
    await eventually("the end of the turn", () => idles() === 2 && client.events(id).includes("session.shutdown"));
    expect(client.events(id).filter((type) => /error|shutdown/.test(type))).toEqual([
      "session.error",
      "session.shutdown",
    ]);
    expect(await client.turn(id, "two")).toMatchObject({ result: {} });
  });

  // On a busy machine, the runtime sometimes unloads a session without an event. The next two tests imitate that by
  // changing the session's lock file.
  const lockOf = async (user: string, sessionId: string) => {
    const { home, pid } = await at.serverOf(user);
    return join(sessionFolderPath(home, sessionId), `inuse.${innerPidOf(pid)}.lock`);
  };
  const unloads = (sessionId: string) =>
    at.events.filter((event) => event.event === "session-unloaded" && event.sessionId === sessionId).length;

  it("ends a turn with an error when its server unloads the session without sending session.shutdown", async () => {
    const [client, id] = [await RawClient.as(at.url, await at.token("kim")), unused("silent")];
    await client.requestOk("session.create", { sessionId: id });
    await client.turnOk(id, "one");
    await client.requestOk("session.send", { sessionId: id, prompt: `!hold ${id}` });
    rmSync(await lockOf("kim", id));
    await eventually("the unloading", () => client.events(id).includes("session.shutdown"));
    expect(client.events(id).slice(-3)).toEqual(["session.error", "session.idle", "session.shutdown"]);
    expect(unloads(id)).toBe(1);
    at.model.letGo(id);
    expect(await client.turn(id, "two")).toMatchObject({ result: {} });
  });

  it("reattaches a listener when the server reloads a session without having sent session.shutdown", async () => {
    const [token, id] = [await at.token("lou"), unused("again")];
    const [talker, listener] = [await RawClient.as(at.url, token), await RawClient.as(at.url, token)];
    await talker.requestOk("session.create", { sessionId: id });
    await talker.turnOk(id, "one");
    await listener.requestOk("session.resume", { sessionId: id });
    const lock = await lockOf("lou", id);
    renameSync(lock, `${lock}.away`);
    renameSync(`${lock}.away`, lock); // this changes the time that identifies the load
    await eventually("both know", () =>
      [talker, listener].every((client) => client.events(id).includes("session.shutdown")),
    );
    await eventually("both are attached again", () => {
      const reopened = at.events.filter(({ event, sessionId }) => event === "session-reopened" && sessionId === id);
      return reopened.length === 2;
    });
    const before = listener.events(id).length;
    await talker.turnOk(id, "two");
    await eventually("the events of a turn", () => listener.events(id).slice(before).includes("session.idle"));
    expect(unloads(id)).toBe(2);
  });

  it("reopens a session without turns after its server died or its client left", async () => {
    const client = await at.client("fay");
    const session = await client.createSession({ onPermissionRequest: approveAll });
    await killed((await at.serverOf("fay")).pid);
    expect(await say(session, "first")).toBe("you said: first");
    await session.disconnect();
    const empty = await client.createSession({ onPermissionRequest: approveAll });
    await empty.disconnect();
    const other = await at.client("fay");
    const again = await other.resumeSession(empty.sessionId, { onPermissionRequest: approveAll });
    expect(await say(again, "late")).toBe("you said: late");
  });

  it("sends each prompt to the runtime only once when the server dies between two prompts", async () => {
    const client = await at.client("gil");
    const session = await client.createSession({ onPermissionRequest: approveAll });
    await say(session, "one");
    await killed((await at.serverOf("gil")).pid);
    expect(await say(session, "two")).toBe("you said: two");
    const prompts = (await session.getEvents()).flatMap((event) =>
      event.type === "user.message" ? event.data.content : [],
    );
    expect(prompts).toEqual(["one", "two"]);
  });
});

describe("the front door, when a server with many clients is killed,", () => {
  const clients = rounds(12, 100);

  it("ends all turns within 2 s if their server dies, and runs all next prompts if it dies between turns", async () => {
    await using at = await DoorFleet.open({ config: { isolation: "shared", session: { maxActive: 200 } } });
    const connected = await Promise.all(
      Array.from({ length: clients }, async (_, index) => {
        const client = await RawClient.as(at.url, await at.token(`user-${index}`));
        const id = `session-${index}`;
        await client.requestOk("session.create", { sessionId: id });
        await client.turnOk(id, "one");
        return { client, id };
      }),
    );
    const pidOf = async () => (await at.fleet.servers.list()).find(({ state }) => state === "ready")?.pid ?? null;
    await killed(await pidOf());
    const answers = await Promise.all(connected.map(async ({ client, id }) => await client.turn(id, "two")));
    expect(answers.filter(({ error }) => error !== undefined)).toEqual([]);

    for (const { client, id } of connected)
      await client.requestOk("session.send", { sessionId: id, prompt: "!delay 60000 x" });
    // Wait until all turns have begun, because the front door sends a prompt again if its turn has not begun.
    const prompts = ({ client, id }: { client: RawClient; id: string }) =>
      client.events(id).filter((type) => type === "user.message").length;
    await eventually("all the turns", () => connected.every((entry) => prompts(entry) === 3));
    const pid = await pidOf();
    const idles = ({ client, id }: { client: RawClient; id: string }) =>
      client.events(id).filter((type) => type === "session.error").length;
    using watch = new Stopwatch();
    process.kill(pid ?? 0, "SIGKILL");
    await eventually("all the errors", () => connected.every((entry) => idles(entry) === 1));
    expect(watch.ms).toBeLessThan(2_000);
  });
});
