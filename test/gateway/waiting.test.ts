import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { usedSessions } from "../../src/pool/use-markers.js";
import { eventually } from "../fixtures/eventually.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { killed } from "../fixtures/processes.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

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

  const team = async (sessionId: string) => {
    const session = await at.fleet.createSession({ user: "ann", members: ["ben"], sessionId });
    await at.fleet.leaveSession(session);
    return [await join("ann", sessionId), await join("ben", sessionId)] as const;
  };
  const join = async (user: string, sessionId: string) => {
    const client = await RawClient.as(at.url, await at.token(user));
    expect(await client.request("session.resume", { sessionId })).toMatchObject({ result: { sessionId } });
    return client;
  };
  const holder = async (sessionId: string) => (await at.store.leases.read(sessionId))?.holder;
  const marks = async () => {
    const { servers } = await at.store.registry.read();
    return Object.values(servers).flatMap((server) => [...usedSessions(server)]);
  };
  /** The prompts and the idle events of a session, in order. */
  const course = ({ received }: RawClient, sessionId: string) =>
    received.flatMap(({ method, params }) => {
      if (method !== "session.event" || params?.sessionId !== sessionId) return [];
      const { type, data } = params.event as { type: string; data: { content?: string } };
      if (type === "user.message") return [data.content];
      return type === "session.idle" ? ["idle"] : [];
    });

  it("gives a waiting prompt its own turn, and does not send its client the end of the turn before it", async () => {
    const [ann, ben] = await team("own-turn");
    const listener = await join("ann", "own-turn");
    await ann.requestOk("session.send", { sessionId: "own-turn", prompt: "!delay 500 a" });
    await ben.requestOk("session.send", { sessionId: "own-turn", prompt: "!hold own b" });
    expect(await holder("own-turn")).toBe("ben");
    const turn = ann.turn("own-turn", "c");
    await eventually("it waits", () => at.door.turns === 2);
    at.model.letGo("own");
    await turn;
    expect(course(ann, "own-turn")).toEqual(["!delay 500 a", "idle", "!hold own b", "c", "idle"]);
    await eventually("the last end at the listener", () => course(listener, "own-turn").length === 6);
    expect(course(listener, "own-turn")).toEqual(["!delay 500 a", "idle", "!hold own b", "idle", "c", "idle"]);
  });

  it("gives a waiting prompt its own turn when the server dies during the turn before it", async () => {
    const [ann, ben] = await team("lost-turn");
    await ann.turnOk("lost-turn", "one");
    await ann.requestOk("session.send", { sessionId: "lost-turn", prompt: "!delay 60000 a" });
    const sent = ben.request("session.send", { sessionId: "lost-turn", prompt: "!hold lost b" });
    await ben.request("ping");
    await killed((await at.fleet.servers()).find(({ state }) => state === "ready")?.pid ?? null);
    expect(await sent).toMatchObject({ result: {} });
    expect(await holder("lost-turn")).toBe("ben");
    at.model.letGo("lost");
    await eventually("the end of the turn", async () => (await holder("lost-turn")) === undefined);
    expect(course(ben, "lost-turn").slice(-2)).toEqual(["!hold lost b", "idle"]);
  });

  it("runs a prompt that comes right after its client has taken back a waiting prompt", async () => {
    const [ann, ben] = await team("taken-back");
    await ann.requestOk("session.send", { sessionId: "taken-back", prompt: "!hold back a" });
    ben.send({ id: 1, method: "session.send", params: { sessionId: "taken-back", prompt: "b" } });
    await eventually("it waits", () => at.door.turns === 2);
    ben.send({ id: 2, method: "session.abort", params: { sessionId: "taken-back" } });
    ben.send({ id: 3, method: "session.send", params: { sessionId: "taken-back", prompt: "c" } });
    expect(await ben.answerTo(1)).toMatchObject({ error: { data: { code: "FLEET_TURN_FAILED" } } });
    expect(await ben.answerTo(2)).toMatchObject({ result: { success: true } });
    at.model.letGo("back");
    expect((await ben.answerTo(3)).error).toBeUndefined();
    await eventually("its turn", () => course(ann, "taken-back").length === 4);
    expect(course(ann, "taken-back")).toEqual(["!hold back a", "idle", "c", "idle"]);
  });

  it("gives a waiting prompt its own lease and use marker when the prompt before it is refused", async () => {
    const [ann, ben] = await team("behind-refused");
    await ann.requestOk("session.send", { sessionId: "behind-refused", prompt: "!hold refused a" });
    const attachments = [{ type: "file", path: "/etc/passwd" }];
    ben.send({ id: 1, method: "session.send", params: { sessionId: "behind-refused", prompt: "b", attachments } });
    ben.send({ id: 2, method: "session.send", params: { sessionId: "behind-refused", prompt: "!delay 60000 c" } });
    await eventually("they wait", () => at.door.turns === 2);
    at.model.letGo("refused");
    expect(await ben.answerTo(1)).toMatchObject({ error: { data: { code: "FLEET_METHOD_DENIED" } } });
    expect(await ben.answerTo(2)).toMatchObject({ result: {} });
    // This turn ends only when it is aborted. The lease and the use marker must stay until then.
    for (let look = 0; look < 20; look += 1) {
      expect(await holder("behind-refused")).toBe("ben");
      expect(await marks()).toContain("behind-refused");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect(await ben.request("session.abort", { sessionId: "behind-refused" })).toMatchObject({
      result: { success: true },
    });
    await eventually("the end of that turn", () => course(ann, "behind-refused").length === 4);
    await ann.turnOk("behind-refused", "d");
    expect(course(ann, "behind-refused")).toEqual(["!hold refused a", "idle", "!delay 60000 c", "idle", "d", "idle"]);
    await eventually("neither is kept", async () => {
      return (await holder("behind-refused")) === undefined && !(await marks()).includes("behind-refused");
    });
  });

  it("removes a waiting prompt from the lease queue when its client hangs up, even right after sending the prompt", async () => {
    const [ann, ben] = await team("hung-up");
    const late = await RawClient.as(at.url, await at.token("ben"));
    await ann.requestOk("session.send", { sessionId: "hung-up", prompt: "!delay 60000 a" });
    ben.send({ id: 1, method: "session.send", params: { sessionId: "hung-up", prompt: "b" } });
    await eventually("it waits", () => at.door.turns === 2);
    ben.socket.destroy();
    late.send({ id: 1, method: "session.resume", params: { sessionId: "hung-up" } });
    late.send({ id: 2, method: "session.send", params: { sessionId: "hung-up", prompt: "b" } });
    late.socket.destroy();
    await eventually("they have gone", () => late.closed && ben.closed && at.door.turns === 1);
    const place = { sessionId: "hung-up", holder: "ann", token: "looks", ttlMs: 5_000, placeMs: 3_000 };
    const isNext = async () => {
      const answer = await at.store.leases.acquire(place);
      return !answer.granted && answer.ahead === 0;
    };
    await eventually("nobody is before us", isNext, 3_000);
    await at.store.leases.leave("hung-up", "looks");
    expect(course(ann, "hung-up")).toEqual(["!delay 60000 a"]);
    await ann.request("session.abort", { sessionId: "hung-up" });
  });

  it("lets a waiting prompt wait for the end of a turn whose client has hung up", async () => {
    const [ann, ben] = await team("left");
    const listener = await join("ben", "left");
    await ann.requestOk("session.send", { sessionId: "left", prompt: "!hold left a" });
    await eventually("it has begun", () => course(ben, "left").length === 1);
    ann.socket.destroy();
    await eventually("she has gone", () => at.door.turns === 0);
    expect(await holder("left")).toBe("ann");
    const turn = ben.turn("left", "b");
    await eventually("he waits", () => at.door.turns === 1);
    at.model.letGo("left");
    await turn;
    expect(course(ben, "left")).toEqual(["!hold left a", "b", "idle"]);
    await eventually("the last end at the listener", () => course(listener, "left").length === 4);
    expect(course(listener, "left")).toEqual(["!hold left a", "idle", "b", "idle"]);
    await eventually("the lease is given back", async () => (await holder("left")) === undefined);
  });

  it("aborts an endless turn one lease TTL after its client has hung up, and runs the waiting prompt", async () => {
    const [ann, ben] = await team("stuck");
    const listener = await join("ben", "stuck");
    await ann.requestOk("session.send", { sessionId: "stuck", prompt: "!delay 60000 a" });
    await eventually("it has begun", () => course(ben, "stuck").length === 1);
    ann.socket.destroy();
    await eventually("she has gone", () => at.door.turns === 0);
    expect((await ben.turn("stuck", "b")).error).toBeUndefined();
    expect(course(ben, "stuck")).toEqual(["!delay 60000 a", "b", "idle"]);
    await eventually("the last end at the listener", () => course(listener, "stuck").length === 4);
    expect(course(listener, "stuck")).toEqual(["!delay 60000 a", "idle", "b", "idle"]);
    expect(ben.events("stuck")).toContain("abort");
  });

  it("refuses a prompt when all waiting prompts together exceed the length limit of one frame", async () => {
    const [ann, ben] = await team("long");
    await ann.requestOk("session.send", { sessionId: "long", prompt: "!delay 60000 a" });
    const prompt = "x".repeat(300 * 1024);
    for (const id of [1, 2, 3]) ben.send({ id, method: "session.send", params: { sessionId: "long", prompt } });
    ben.send({ id: 4, method: "session.send", params: { sessionId: "long", prompt } });
    const refused = { error: { code: -32003, data: { code: "FLEET_REQUESTS_EXHAUSTED", retryable: true } } };
    expect(await ben.answerTo(4)).toMatchObject(refused);
    // Short requests are still accepted.
    expect(await ben.request("session.abort", { sessionId: "long" })).toMatchObject({ result: { success: true } });
    for (const id of [1, 2, 3]) expect((await ben.answerTo(id)).error?.data?.code).toBe("FLEET_TURN_FAILED");
    await ann.request("session.abort", { sessionId: "long" });
    expect((await ben.request("session.send", { sessionId: "long", prompt })).error).toBeUndefined();
  });

  it("runs a member's prompt soon after the end of a turn whose client has left the session", async () => {
    const [ann, ben] = await team("detached");
    await ann.requestOk("session.send", { sessionId: "detached", prompt: "!hold detached a" });
    expect((await ann.request("session.detach", { sessionId: "detached" })).error).toBeUndefined();
    at.model.letGo("detached");
    await eventually("the end of her turn", () => course(ben, "detached").includes("idle"));
    using watch = new Stopwatch();
    await ben.turnOk("detached", "b");
    expect(watch.ms).toBeLessThan(4_000);
    expect(course(ben, "detached")).toEqual(["!hold detached a", "idle", "b", "idle"]);
  });

  it("refuses a prompt that the runtime would never answer, and does not hold the lease for that prompt", async () => {
    const [ann, ben] = await team("cut");
    expect(await ann.request("session.send", { sessionId: "cut", prompt: "half an emoji: \ud83e" })).toMatchObject({
      error: { code: -32602 },
    });
    expect(await holder("cut")).toBeUndefined();
    await ben.turnOk("cut", "b");
    await ann.turnOk("cut", "a");
    await eventually("the end of the last turn at the other client", () => course(ben, "cut").length === 4);
    expect(course(ben, "cut")).toEqual(["b", "idle", "a", "idle"]);
  });
});

describe.skipIf(redisProblem())("the front door, with prompts that a client sends without waiting for answers,", () => {
  let redis: RedisServer;
  let at: DoorFleet;
  beforeAll(async () => {
    redis = await RedisServer.start();
    // The real server may take prompts that arrive close together in any order.
    const config = { store: redis.url(), runtime: { path: fake("obedient.mjs") } };
    at = await DoorFleet.open({ config });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    await redis.end();
  });

  const session = async (sessionId: string) => {
    const client = await RawClient.as(at.url, await at.token("ann"));
    await client.requestOk("session.create", { sessionId });
    return client;
  };
  const said = ({ received }: RawClient) =>
    received.flatMap(({ params }) => {
      const { type, data } = (params?.event ?? {}) as { type?: string; data?: { content: string } };
      return type === "user.message" ? [data?.content] : [];
    });

  it("delivers a client's prompts in the order in which they were sent, even if the first ones had to wait", async () => {
    const client = await session("in-order");
    const lease = await at.fleet.lockSession("in-order", { user: "ann" });
    const prompts = Array.from({ length: 200 }, (_, index) => `prompt ${index}`);
    const sent: ReturnType<RawClient["request"]>[] = [];
    for (const prompt of prompts) {
      sent.push(client.request("session.send", { sessionId: "in-order", prompt }));
      if (sent.length === 100) void lease.release();
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect((await Promise.all(sent)).filter(({ error }) => error !== undefined)).toEqual([]);
    await eventually("word of the last one", () => said(client).length >= prompts.length);
    expect(said(client)).toEqual(prompts);
  });

  it("delivers in order, in another turn, the prompts that a lost server did not get", async () => {
    const client = await session("lost");
    const lease = await at.fleet.lockSession("lost", { user: "ann" });
    const prompts = Array.from({ length: 200 }, (_, index) => (index === 0 ? "!no JSON" : `prompt ${index}`));
    const send = async (prompt: string) => await client.request("session.send", { sessionId: "lost", prompt });
    const sent = prompts.map(send);
    await eventually("they wait", () => at.door.turns === 1);
    await lease.release();
    // The speed of the machine decides which prompts the server gets before it is lost. Send one more after that.
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
    await eventually("the lease is given back", async () => (await at.fleet.leaseOf("lost")) === null);
  });
});
