import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { killed } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

describe("the front door, with a prompt that waits in a collaborative session,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open({
      config: { isolation: "shared", serve: { turnWait: "15s", maxFrame: "1mb" }, lock: { ttl: "6s" } },
    });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  /** Creates a session of ann's with ben as a member, and opens it for a client of each. */
  const team = async () => {
    await eventually("the end of what an earlier try left", () => at.door.turns === 0);
    const sessionId = unused("team");
    const session = await at.fleet.sessions.create({ user: "ann", members: ["ben"], sessionId });
    await at.fleet.sessions.leave(session);
    return [sessionId, await join("ann", sessionId), await join("ben", sessionId)] as const;
  };
  const join = async (user: string, sessionId: string) => {
    const client = await RawClient.as(at.url, await at.token(user));
    expect(await client.request("session.resume", { sessionId })).toMatchObject({ result: { sessionId } });
    return client;
  };
  const holder = async (sessionId: string) => (await at.store.leases.read(sessionId))?.holder;
  /** The prompts and the idle events of a session, in order. */
  const course = ({ received }: RawClient, sessionId: string) =>
    received.flatMap(({ method, params }) => {
      if (method !== "session.event" || params?.sessionId !== sessionId) return [];
      const { type, data } = params.event as { type: string; data: { content?: string } };
      if (type === "user.message") return [data.content];
      return type === "session.idle" ? ["idle"] : [];
    });

  it("gives a waiting prompt its own turn, and does not send its client the end of the previous turn", async () => {
    const [id, ann, ben] = await team();
    const listener = await join("ann", id);
    await ann.requestOk("session.send", { sessionId: id, prompt: "!delay 500 a" });
    await ben.requestOk("session.send", { sessionId: id, prompt: `!hold ${id} b` });
    expect(await holder(id)).toBe("ben");
    const turn = ann.turn(id, "c");
    await eventually("it waits", () => at.door.turns === 2);
    at.model.letGo(id);
    await turn;
    expect(course(ann, id)).toEqual(["!delay 500 a", "idle", `!hold ${id} b`, "c", "idle"]);
    await eventually("the last end at the listener", () => course(listener, id).length === 6);
    expect(course(listener, id)).toEqual(["!delay 500 a", "idle", `!hold ${id} b`, "idle", "c", "idle"]);
  });

  it("gives a waiting prompt its own turn when the server dies during the previous turn", async () => {
    const [id, ann, ben] = await team();
    await ann.turnOk(id, "one");
    await ann.requestOk("session.send", { sessionId: id, prompt: "!delay 60000 a" });
    // Wait until the prompt has begun. Otherwise the front door would send it again after the server's death.
    await eventually("it has begun", () => course(ann, id).includes("!delay 60000 a"));
    const sent = ben.request("session.send", { sessionId: id, prompt: `!hold ${id} b` });
    await ben.requestOk("ping");
    await killed((await at.fleet.servers.list()).find(({ state }) => state === "ready")?.pid ?? null);
    expect(await sent).toMatchObject({ result: {} });
    expect(await holder(id)).toBe("ben");
    at.model.letGo(id);
    await eventually("the end of the turn", async () => (await holder(id)) === undefined);
    expect(course(ben, id).slice(-2)).toEqual([`!hold ${id} b`, "idle"]);
  });

  it("runs a prompt that a client sends right after it has cancelled a waiting prompt", async () => {
    const [id, ann, ben] = await team();
    await ann.requestOk("session.send", { sessionId: id, prompt: `!hold ${id} a` });
    ben.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: "b" } });
    await eventually("it waits", () => at.door.turns === 2);
    ben.send({ id: 2, method: "session.abort", params: { sessionId: id } });
    ben.send({ id: 3, method: "session.send", params: { sessionId: id, prompt: "c" } });
    expect(await ben.answerTo(1)).toMatchObject({ error: { data: { code: "FLEET_TURN_FAILED" } } });
    expect(await ben.answerTo(2)).toMatchObject({ result: { success: true } });
    at.model.letGo(id);
    expect((await ben.answerTo(3)).error).toBeUndefined();
    await eventually("its turn", () => course(ann, id).length === 4);
    expect(course(ann, id)).toEqual([`!hold ${id} a`, "idle", "c", "idle"]);
  });

  it("removes a waiting prompt from the lease queue when its client hangs up, even right after sending the prompt", async () => {
    const [id, ann, ben] = await team();
    const late = await RawClient.as(at.url, await at.token("ben"));
    await ann.requestOk("session.send", { sessionId: id, prompt: "!delay 60000 a" });
    await eventually("it has begun", () => course(ann, id).length === 1);
    ben.send({ id: 1, method: "session.send", params: { sessionId: id, prompt: "b" } });
    await eventually("it waits", () => at.door.turns === 2);
    ben.socket.destroy();
    late.send({ id: 1, method: "session.resume", params: { sessionId: id } });
    late.send({ id: 2, method: "session.send", params: { sessionId: id, prompt: "b" } });
    late.socket.destroy();
    using watch = new Stopwatch();
    await eventually("they have gone", () => late.closed && ben.closed && at.door.turns === 1);
    const place = { sessionId: id, holder: "ann", token: "looks", ttlMs: 5_000, placeMs: 3_000 };
    const isNext = async () => {
      const answer = await at.store.leases.acquire(place);
      return !answer.granted && answer.ahead === 0;
    };
    await eventually("nobody is before us", isNext);
    expect(watch.ms).toBeLessThan(3_000);
    await at.store.leases.leave(id, "looks");
    expect(course(ann, id)).toEqual(["!delay 60000 a"]);
    await ann.requestOk("session.abort", { sessionId: id });
  });

  it("makes a waiting prompt wait for the end of the previous turn even if that turn's client has hung up", async () => {
    const [id, ann, ben] = await team();
    const listener = await join("ben", id);
    await ann.requestOk("session.send", { sessionId: id, prompt: `!hold ${id} a` });
    await eventually("it has begun", () => course(ben, id).length === 1);
    ann.socket.destroy();
    await eventually("she has gone", () => at.door.turns === 0);
    expect(await holder(id)).toBe("ann");
    const turn = ben.turn(id, "b");
    await eventually("he waits", () => at.door.turns === 1);
    at.model.letGo(id);
    await turn;
    expect(course(ben, id)).toEqual([`!hold ${id} a`, "b", "idle"]);
    await eventually("the last end at the listener", () => course(listener, id).length === 4);
    expect(course(listener, id)).toEqual([`!hold ${id} a`, "idle", "b", "idle"]);
    await eventually("the lease is given back", async () => (await holder(id)) === undefined);
  });

  it("aborts an endless turn one lease TTL after its client has hung up, and runs the waiting prompt", async () => {
    const [id, ann, ben] = await team();
    const listener = await join("ben", id);
    await ann.requestOk("session.send", { sessionId: id, prompt: "!delay 60000 a" });
    await eventually("it has begun", () => course(ben, id).length === 1);
    ann.socket.destroy();
    await eventually("she has gone", () => at.door.turns === 0);
    expect((await ben.turn(id, "b")).error).toBeUndefined();
    expect(course(ben, id)).toEqual(["!delay 60000 a", "b", "idle"]);
    await eventually("the last end at the listener", () => course(listener, id).length === 4);
    expect(course(listener, id)).toEqual(["!delay 60000 a", "idle", "b", "idle"]);
    expect(ben.events(id)).toContain("abort");
  });

  it("refuses a prompt when all waiting prompts together exceed the length limit of one frame", async () => {
    const [id, ann, ben] = await team();
    await ann.requestOk("session.send", { sessionId: id, prompt: "!delay 60000 a" });
    const prompt = "x".repeat(300 * 1024);
    for (const request of [1, 2, 3, 4]) {
      ben.send({ id: request, method: "session.send", params: { sessionId: id, prompt } });
    }
    const refused = { error: { code: -32003, data: { code: "FLEET_LIMIT_REACHED", retryable: true } } };
    expect(await ben.answerTo(4)).toMatchObject(refused);
    // Short requests are still accepted.
    expect(await ben.request("session.abort", { sessionId: id })).toMatchObject({ result: { success: true } });
    for (const request of [1, 2, 3]) {
      expect((await ben.answerTo(request)).error?.data?.code).toBe("FLEET_TURN_FAILED");
    }
    await ann.requestOk("session.abort", { sessionId: id });
    expect((await ben.request("session.send", { sessionId: id, prompt })).error).toBeUndefined();
  });

  it("runs a member's prompt soon after the end of a turn whose client has left the session", async () => {
    const [id, ann, ben] = await team();
    await ann.requestOk("session.send", { sessionId: id, prompt: `!hold ${id} a` });
    expect((await ann.request("session.detach", { sessionId: id })).error).toBeUndefined();
    at.model.letGo(id);
    await eventually("the end of her turn", () => course(ben, id).includes("idle"));
    using watch = new Stopwatch();
    await ben.turnOk(id, "b");
    expect(watch.ms).toBeLessThan(4_000);
    expect(course(ben, id)).toEqual([`!hold ${id} a`, "idle", "b", "idle"]);
  });

  it("refuses a prompt that the runtime would never answer, and takes no lease for it", async () => {
    const [id, ann, ben] = await team();
    expect(await ann.request("session.send", { sessionId: id, prompt: "half an emoji: \ud83e" })).toMatchObject({
      error: { code: -32602 },
    });
    expect(await holder(id)).toBeUndefined();
    await ben.turnOk(id, "b");
    await ann.turnOk(id, "a");
    await eventually("the end of the last turn at the other client", () => course(ben, id).length === 4);
    expect(course(ben, id)).toEqual(["b", "idle", "a", "idle"]);
  });
});

describe.skipIf(redisProblem())("the front door, with prompts that a client sends without waiting for answers,", () => {
  let redis: RedisServer;
  let at: DoorFleet;
  beforeAll(async () => {
    redis = await RedisServer.start();
    // Use the fake server, because the real one may accept prompts that arrive close together in any order.
    const config = { store: redis.url(), runtime: { path: fake("obedient.mjs") } };
    at = await DoorFleet.open({ config });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    await redis.end();
  });

  const session = async () => {
    const [client, sessionId] = [await RawClient.as(at.url, await at.token("ann")), unused("s")];
    await client.requestOk("session.create", { sessionId });
    return [client, sessionId] as const;
  };
  const said = ({ received }: RawClient) =>
    received.flatMap(({ params }) => {
      const { type, data } = (params?.event ?? {}) as { type?: string; data?: { content: string } };
      return type === "user.message" ? [data?.content] : [];
    });

  it("delivers a client's prompts in the order in which they were sent, even if the first ones had to wait", async () => {
    const [client, sessionId] = await session();
    const lease = await at.fleet.leases.acquire(sessionId, { user: "ann" });
    const prompts = Array.from({ length: 200 }, (_, index) => `prompt ${index}`);
    const sent: ReturnType<RawClient["request"]>[] = [];
    for (const prompt of prompts) {
      sent.push(client.request("session.send", { sessionId, prompt }));
      if (sent.length === 100) void lease.release();
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect((await Promise.all(sent)).filter(({ error }) => error !== undefined)).toEqual([]);
    await eventually("word of the last one", () => said(client).length >= prompts.length);
    expect(said(client)).toEqual(prompts);
  });

  it("when the connection to a server breaks, sends the prompts that still wait over a new one, in order", async () => {
    const [client, sessionId] = await session();
    const lease = await at.fleet.leases.acquire(sessionId, { user: "ann" });
    const prompts = Array.from({ length: 200 }, (_, index) => (index === 0 ? "!no JSON" : `prompt ${index}`));
    const send = async (prompt: string) => await client.request("session.send", { sessionId, prompt });
    const sent = prompts.map(send);
    await eventually("they wait", () => at.door.turns === 1);
    await lease.release();
    // The server answers the first prompt with invalid JSON, so the door closes the connection. How many prompts were
    // sent before that depends on the machine. After that, send one more prompt.
    await sent[0];
    prompts.push("the last one");
    sent.push(send("the last one"));
    const answers = await Promise.all(sent);
    const lost = answers.filter(({ error }) => error !== undefined);
    expect(new Set(lost.map(({ error }) => error?.data?.code))).toEqual(new Set(["FLEET_SERVER_LOST"]));
    expect(answers.at(-1)).toMatchObject({ result: {} });
    await eventually("word of it", () => said(client).includes("the last one"));
    expect(said(client)).toEqual(prompts.filter((_, index) => answers[index]?.error === undefined));
    await eventually("the end of the turn", () => at.door.turns === 0);
    await eventually("the lease is given back", async () => (await at.fleet.leases.get(sessionId)) === null);
  });
});
