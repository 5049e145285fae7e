import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { usedSessions } from "../../src/servers/use-markers.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { killed } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";

describe("the front door, when a server breaks the protocol,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { runtime: { path: fake("obedient.mjs") } } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const session = async (user: string, sessionId: string) => {
    const client = await RawClient.as(at.url, await at.token(user));
    expect(await client.request("session.create", { sessionId })).toMatchObject({ result: { sessionId } });
    return client;
  };
  const lost = { error: { code: -32003, data: { code: "FLEET_SERVER_LOST", retryable: true } } };

  it.each([
    ["text", "no-json", "no JSON at all"],
    ["an object that is cut off", "breaks-off", '{"jsonrpc":"2.0","id":ID,"result":{"a":'],
    ["an invalid id", "bad-id", '{"jsonrpc":"2.0","id":abc,"result":{}}'],
    ["an invalid error", "bad-error", '{"jsonrpc":"2.0","id":ID,"error":{+}}'],
    [
      "an invalid event",
      "bad-event",
      '{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"SESSION","event":{"type":"session.idle",+}}}',
    ],
  ])(
    "closes only the server connection that delivered %s, fails its prompt, and keeps all clients connected",
    async (_, name, frame) => {
      const sessionId = unused(name);
      const user = `of-${sessionId}`;
      const [client, other] = [await session(user, sessionId), await RawClient.as(at.url, await at.token(user))];
      const { pid } = await at.serverOf(user);
      const before = at.events.length;
      expect(
        await client.request("session.send", { sessionId, prompt: `!${frame.replace("SESSION", sessionId)}` }),
      ).toMatchObject(lost);
      const told = at.events.slice(before).filter(({ event }) => event !== "closed");
      // Check only the first two events. Before the front door fails the prompt, it checks whether the server is alive.
      // During that check, it may already reopen the session, and then there is a third event.
      expect(told.slice(0, 2)).toMatchObject([
        { event: "protocol-error", user, detail: expect.stringMatching(/^from of-[^:]+: A frame is not JSON\.$/) },
        { event: "server-lost", user },
      ]);
      // Both clients stay connected, and the server keeps running.
      expect(await client.request("session.send", { sessionId, prompt: "again" })).toMatchObject({ result: {} });
      expect(await other.request("ping")).toMatchObject({ result: {} });
      expect((await at.serverOf(user)).pid).toBe(pid);
    },
  );

  it("reopens a client's other sessions after closing a server's connection because of invalid JSON", async () => {
    const [faulty, heard] = [unused("faulty"), unused("heard")];
    const client = await session("listens", faulty);
    await client.requestOk("session.create", { sessionId: heard });
    const other = await RawClient.as(at.url, await at.token("listens"));
    await other.requestOk("session.resume", { sessionId: heard });
    expect(await client.request("session.send", { sessionId: faulty, prompt: "!no JSON" })).toMatchObject(lost);
    // The front door reopens the session without a request from the client.
    await eventually("that it is open again", () =>
      at.events.some(({ event, sessionId }) => event === "session-reopened" && sessionId === heard),
    );
    await other.turnOk(heard, "next");
    await eventually("what the other said", () => client.events(heard).includes("session.idle"));
  });

  it("ends a turn for the client when the server unloads the session without ending the turn", async () => {
    const id = unused("brief");
    const client = await session("unloaded", id);
    expect(await client.request("session.send", { sessionId: id, prompt: "unload" })).toMatchObject({
      result: {},
    });
    const ended = ["session.error", "session.idle", "session.shutdown"];
    await eventually("the end of the turn", () => client.events(id).length === ended.length);
    expect(client.events(id)).toEqual(ended);
  });

  it("logs the stack of an exception that is thrown while it handles a server's frame", async () => {
    const id = unused("stacked");
    const client = await session("stacked", id);
    const frame = `{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"${id}","event":{"type":"session.idle"}},"params":null}`;
    const before = at.events.length;
    expect(await client.request("session.send", { sessionId: id, prompt: `!${frame}` })).toMatchObject(lost);
    const failed = await eventually("the log", () => at.events.slice(before).find(({ event }) => event === "failed"));
    expect(failed.detail).toMatch(
      /^while handling a frame from stacked-.*: TypeError: .*\n +at endsTurn .*events\.ts/s,
    );
  });
});

describe("the front door, when a server speaks version 4 of the protocol,", () => {
  it("refuses a client whose server speaks protocol version 4, and names the versions and the SDKs that fit", async () => {
    await using at = await DoorFleet.open({ config: { runtime: { path: fake("newer.mjs") } } });
    const client = await RawClient.open(at.url);
    const answer = await client.request("connect", { token: await at.token("ann") });
    expect(answer.error).toMatchObject({
      message: expect.stringMatching(
        /speaks version 4 of .*; this fleet needs version 3\. Version 3 is spoken by SDK 1\.x .* Version 4 is spoken by SDK 2\.x/,
      ),
      data: { code: "FLEET_RUNTIME_UNUSABLE" },
    });
    await client.end();
  });
});

describe("the front door, when a server is slow,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { runtime: { path: fake("obedient.mjs") } } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it("sends a client no events of a session that the client left while the front door was reopening it", async () => {
    const id = unused("left");
    const token = await at.token("ann");
    const client = await RawClient.as(at.url, token);
    await client.requestOk("session.create", { sessionId: id, model: "slow" });
    await killed((await at.serverOf("ann")).pid);
    client.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: "one" } });
    await eventually("it is needed", () => at.door.turns === 1);
    // The replacement server answers this ping while it is still opening the session.
    expect(await client.request("ping")).toMatchObject({ result: {} });
    expect(await client.request("session.detach", { sessionId: id })).toMatchObject({ result: { success: true } });
    expect((await client.answerTo(1)).error).toBeUndefined();
    const before = client.events(id).length;
    const other = await RawClient.as(at.url, token);
    await other.requestOk("session.resume", { sessionId: id });
    await other.turnOk(id, "two");
    await client.requestOk("ping");
    expect(client.events(id).slice(before)).toEqual([]);
  });

  it("gives the client its prompt's id and the turn's end if the server dies before answering the prompt", async () => {
    const id = unused("begun");
    const client = await RawClient.as(at.url, await at.token("dora"));
    await client.requestOk("session.create", { sessionId: id });
    client.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: "unanswered" } });
    await eventually("the beginning of the turn", () => client.events(id).includes("user.message"));
    await killed((await at.serverOf("dora")).pid);
    expect(await client.answerTo(1)).toMatchObject({ result: { messageId: `of-${id}` } });
    await eventually("the end of the turn", () => client.events(id).includes("session.idle"));
    expect(client.events(id)).toEqual(["user.message", "session.error", "session.idle"]);
    expect(await client.turn(id, "next")).toMatchObject({ result: {} });
  });

  it("frees a session's id if the server dies while it is creating the session", async () => {
    const id = unused("again");
    const client = await RawClient.as(at.url, await at.token("cid"));
    const { pid, home } = await at.serverOf("cid");
    client.send({ id: 1, method: "session.create", params: { sessionId: id, model: "stuck" } });
    await eventually("its folder", () => existsSync(join(home, "session-state", id)));
    await killed(pid);
    expect(await client.answerTo(1)).toMatchObject({ error: { data: { code: "FLEET_SERVER_LOST" } } });
    expect(existsSync(join(home, "session-state", id))).toBe(false);
    expect(await client.request("session.create", { sessionId: id })).toMatchObject({ result: {} });
  });
});

describe("the front door, when a server does not answer,", () => {
  const UNREACHABLE = { error: { code: -32003, data: { code: "FLEET_SERVER_UNREACHABLE", retryable: true } } };
  const clock = new TestClock();
  let at: DoorFleet;
  beforeAll(async () => {
    const config = { runtime: { path: fake("obedient.mjs") }, health: { timeout: "2s" } };
    at = await DoorFleet.open({ config, clock });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  /** Whether the session has a use marker. */
  const isUsed = async (sessionId: string) => {
    const { servers } = await at.store.registry.read();
    return Object.values(servers).some((server) => usedSessions(server).has(sessionId));
  };

  /** Resolves when the server has received a request about the session. The server never answers that request. */
  const unanswered = async (user: string, sessionId: string) => {
    const { home } = await at.serverOf(user);
    await eventually("the question", () => existsSync(join(home, "session-state", sessionId, "unanswered")));
  };

  /** Advances the door's clock by one second, and lets the door and the client's server finish their pending work. */
  const second = async (client: RawClient) => {
    await clock.advance(1_000, 0);
    await client.requestOk("ping");
  };

  it("keeps a client's session open when the server does not answer the client's request to resume it", async () => {
    const id = unused("kept");
    const client = await RawClient.as(at.url, await at.token("eve"));
    await client.requestOk("session.create", { sessionId: id });
    client.send({ id: 1, method: "session.resume", params: { sessionId: id, model: "stuck" } });
    await unanswered("eve", id);
    await clock.advance(30_000, 0);
    expect(await client.answerTo(1)).toMatchObject(UNREACHABLE);
    const before = client.events(id).length;
    expect(await client.turn(id, "next")).toMatchObject({ result: {} });
    expect(client.events(id).slice(before)).toEqual(["user.message", "session.idle"]);
  });

  it("answers FLEET_SERVER_UNREACHABLE when a server does not create a session within 30 s", async () => {
    const sessionId = unused("stuck");
    const client = await RawClient.as(at.url, await at.token("ben"));
    client.send({ id: 1, method: "session.create", params: { sessionId, model: "stuck" } });
    await unanswered("ben", sessionId);
    await clock.advance(29_999, 0);
    await client.requestOk("ping");
    expect(client.received.some(({ id }) => id === 1)).toBe(false);
    await clock.advance(1, 0);
    expect(await client.answerTo(1)).toMatchObject(UNREACHABLE);
    // The half-created session does not block a new one with the same id.
    expect(await client.request("session.create", { sessionId })).toMatchObject({ result: {} });
  });

  it("keeps a session and answers FLEET_SERVER_UNREACHABLE if the server does not delete it within 30 s", async () => {
    const [lasting, other] = [unused("lasting"), unused("other")];
    const client = await RawClient.as(at.url, await at.token("fay"));
    await client.requestOk("session.create", { sessionId: lasting });
    await client.requestOk("session.create", { sessionId: other });
    client.send({ id: 1, method: "session.delete", params: { sessionId: lasting } });
    client.send({ id: 2, method: "session.getMessages", params: { sessionId: lasting } });
    expect(await client.turn(other, "during the deletion")).toMatchObject({ result: {} });
    await eventually("the time limit of the deletion", () => clock.isDueIn(30_000));
    await clock.advance(30_000, 0);
    expect(await client.answerTo(1)).toMatchObject({
      error: { message: expect.stringContaining('"session.delete"'), data: { code: "FLEET_SERVER_UNREACHABLE" } },
    });
    // The session still exists, and the request that waited behind the deletion gets its answer.
    expect(await client.answerTo(2)).toMatchObject({ result: {} });
    expect(await client.turn(lasting, "next")).toMatchObject({ result: {} });
  });

  it("does not end a turn when the server sends a late session.idle of the previous turn", async () => {
    const id = unused("behind");
    const client = await RawClient.as(at.url, await at.token("gil"));
    await client.requestOk("session.create", { sessionId: id });
    const listener = await RawClient.as(at.url, await at.token("gil"));
    await listener.requestOk("session.resume", { sessionId: id });
    expect((await client.request("session.send", { sessionId: id, prompt: "behind" })).error).toBeUndefined();
    await eventually("the end of what was before", () => listener.events(id).length > 0);
    // The door has asked the server whether the turn still runs, and will ask again after this pause.
    await eventually("the door's next question", () => clock.isDueIn(250));
    expect(at.door.turns).toBe(1);
    await client.requestOk("session.log", { sessionId: id });
    await eventually("the end of the turn", () => at.door.turns === 0);
    await eventually("its end at both", () => listener.events(id).length > 2 && client.events(id).length > 1);
    expect(listener.events(id)).toEqual(["session.idle", "user.message", "session.idle"]);
    expect(client.events(id)).toEqual(["user.message", "session.idle"]);
  });

  it("ends a turn with an error if the server accepts the prompt, but stays idle and never starts it", async () => {
    const id = unused("forgotten");
    const client = await RawClient.as(at.url, await at.token("ida"));
    await client.requestOk("session.create", { sessionId: id });
    expect(await client.request("session.send", { sessionId: id, prompt: "forgotten" })).toMatchObject({
      result: {},
    });
    await eventually("the wait for the end of the turn", () => clock.isDueIn(15_000));
    await eventually("the end of the turn", async () => {
      await second(client);
      return client.events(id).includes("session.idle");
    });
    // With session.idle alone, the SDK's sendAndWait would return the answer of an earlier turn.
    expect(client.events(id)).toEqual(["session.error", "session.idle"]);
    expect(await client.turn(id, "next")).toMatchObject({ result: {} });
  });

  it("ends a turn 30 s after its prompt if the server never answers the prompt", async () => {
    const id = unused("swallowed");
    const client = await RawClient.as(at.url, await at.token("hal"));
    await client.requestOk("session.create", { sessionId: id });
    const params = { sessionId: id, event: { type: "session.idle", data: {} } };
    const frame = JSON.stringify({ jsonrpc: "2.0", method: "session.event", params });
    client.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: `!${frame}` } });
    await eventually("the wait for the end of the turn", () => clock.isDueIn(15_000));
    for (let passed = 0; passed < 29; passed++) await second(client);
    expect(await isUsed(id)).toBe(true);
    await eventually("the end of the turn", async () => {
      await second(client);
      return !(await isUsed(id));
    });
    await eventually("its end at the client", () => client.events(id).length > 0);
    expect(client.events(id)).toEqual(["session.idle"]);
  });

  it("stops a server without waiting for a session that the server no longer has", async () => {
    const id = unused("unloading");
    const client = await RawClient.as(at.url, await at.token("una"));
    await client.requestOk("session.create", { sessionId: id });
    const { id: serverId, home } = await at.serverOf("una");
    const waited: string[][] = [];
    const stopped = (
      await at.fleet.servers.stop([serverId], {
        drainTimeout: "10s",
        onProgress: ({ turns }) => waited.push(...turns.map(({ sessionIds }) => [...sessionIds])),
      })
    ).stopped;
    expect(stopped).toMatchObject([{ outcome: "drained", cut: [] }]);
    expect(waited).toEqual([]);
    const question = join(home, "session-state", id, "unanswered");
    expect(existsSync(question), "a question that the server does not answer").toBe(false);
  });

  it("ends a turn at session.idle even if the server never answers whether the turn still runs", async () => {
    const id = unused("mute");
    const client = await RawClient.as(at.url, await at.token("dan"));
    await client.requestOk("session.create", { sessionId: id });
    expect((await client.request("session.send", { sessionId: id, prompt: "mute" })).error).toBeUndefined();
    await eventually("the wait for the end of the turn", () => clock.isDueIn(15_000));
    await clock.advance(15_000, 0);
    await unanswered("dan", id);
    expect(await isUsed(id)).toBe(true);
    await client.requestOk("session.log", { sessionId: id });
    await eventually("the end of the turn", async () => !(await isUsed(id)));
    await eventually("its end at the client", () => client.events(id).includes("session.idle"));
    expect(client.events(id)).toEqual(["user.message", "session.idle"]);
    expect(await client.turn(id, "next")).toMatchObject({ result: {} });
  });
});
