import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { FrontDoor } from "../../src/door/door.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "./harness.js";

/**
 * Tests each limit on turns at each entry point: the refusal is the same everywhere and names the limit, and a turn
 * runs as soon as the limit has room again.
 */

let at: TestApi;
let door: FrontDoor;
let store: Store;
beforeAll(async () => {
  // Each test has its own user. Let all of them share one server, so that the tests start only one.
  at = await TestApi.open({ env: { COPILOTFLEET_ISOLATION: "shared" } });
  door = await at.fleet.doors.open({ listen: "127.0.0.1:0" });
  store = openStore("file", at.fleet.stateRoot);
});
afterAll(async () => {
  await store.close();
  await at[Symbol.asyncDispose]();
});

interface Refused {
  code: string;
  limit: string;
  retryable: boolean;
  retryAfterMs: number;
}

/** Sends a prompt. @returns null, or the error */
const ENTRY_POINTS: Readonly<Record<string, (user: string, id: string) => Promise<Refused | null>>> = {
  library: async (user, id) =>
    await at.fleet.sessions.use(id, "hi", { user }).then(
      () => null,
      (error: Refused) => error,
    ),
  command: async (user, id) => {
    const { code, stdout } = await at.commands.run(["send", id, "hi", "--user", user, "--json"]);
    const { error = null } = JSON.parse(stdout);
    if (error === null || error.limit !== undefined) expect(code).toBe(error === null ? 0 : 6);
    return error;
  },
  http: async (user, id) => {
    const options = { token: await at.token(user), body: { prompt: "hi" } };
    const { status, headers, json } = await at.ask("POST", `/v1/sessions/${id}/turns`, options);
    if (status === 200) return null;
    if (json.limit === undefined) return json;
    expect({ status, after: headers["retry-after"] }).toEqual({
      status: 429,
      after: expect.stringMatching(/^[1-9]\d*$/),
    });
    return json;
  },
  door: async (user, id) => {
    const client = await RawClient.as(door.url, await at.token(user));
    await client.requestOk("session.resume", { sessionId: id });
    const { error } = await client.request("session.send", { sessionId: id, prompt: "hi" });
    client.socket.destroy();
    return error === undefined ? null : (error.data as unknown as Refused);
  },
};

/** Uses up a limit of 1. @returns a function that makes room again */
const LIMITS: Readonly<Record<string, (user: string) => Promise<() => Promise<unknown>>>> = {
  turnsPerMinute: async (user) => {
    const slot = { user, kind: "turn", id: randomUUID() } as const;
    await store.limits.take({ ...slot, most: null, perMinute: 1 });
    await store.limits.giveBack(slot, true);
    return async () => await store.limits.giveBack(slot, false);
  },
  concurrentTurns: async (user) => {
    const slot = { user, kind: "turn", id: randomUUID() } as const;
    await store.limits.take({ ...slot, most: 1, perMinute: null });
    return async () => await store.limits.giveBack(slot, true);
  },
  tokensPerDay: async (user) => await consume(user, "tokensPerDay"),
  tokensPerMonth: async (user) => await consume(user, "tokensPerMonth"),
};

async function consume(user: string, limit: string): Promise<() => Promise<unknown>> {
  const line = {
    ...({
      id: randomUUID(),
      at: new Date().toISOString(),
      kind: "request",
      user,
      sessionId: "s",
      model: null,
    } as const),
    ...{ host: null, tokenId: null, cacheReadTokens: null, credits: null, ms: 1 },
  };
  store.usage.append([
    { ...line, inputTokens: null, outputTokens: null, outcome: "begun" },
    { ...line, inputTokens: 3, outputTokens: 2, outcome: "completed" },
  ]);
  await store.usage.settled();
  return async () => await at.fleet.limits.set(user, { [limit]: 1_000_000 });
}

describe.each(Object.keys(ENTRY_POINTS))("a prompt by the %s", (entry) => {
  it.each(Object.keys(LIMITS))("a prompt is refused when %s is used up, and is not charged", async (limit) => {
    const user = unused("u");
    const id = unused("s");
    await at.fleet.sessions.leave(await at.fleet.sessions.create({ user, sessionId: id }));
    await at.fleet.limits.set(user, { [limit]: 1 });
    const makeRoom = await LIMITS[limit]?.(user);
    const send = async () => await ENTRY_POINTS[entry]?.(user, id);
    expect(await send()).toMatchObject({
      ...{ code: "FLEET_LIMIT_REACHED", limit, retryable: true },
      retryAfterMs: expect.any(Number),
    });
    await makeRoom?.();
    // The refused prompt was not charged, so one turn is left.
    expect(await send()).toBeNull();
  });
});

// Leave out the front door, because a prompt to a locked session waits there.
it.each(Object.keys(ENTRY_POINTS).filter((entry) => entry !== "door"))(
  "a prompt to a locked session at the entry point %s is not charged, because its turn never begins",
  async (entry) => {
    const user = unused("u");
    const id = unused("s");
    await at.fleet.sessions.leave(await at.fleet.sessions.create({ user, sessionId: id }));
    await at.fleet.limits.set(user, { turnsPerMinute: 1, concurrentTurns: 1 });
    await at.commands.ok(["lock", id, "--user", user]);
    expect(await ENTRY_POINTS[entry]?.(user, id)).toMatchObject({ code: "FLEET_SESSION_LOCKED" });
    expect((await at.fleet.limits.get(user)).used).toMatchObject({ turnsPerMinute: 0, concurrentTurns: 0 });
  },
);

it("a prompt that waits at the door counts as a concurrent turn, and is not charged if it is cancelled", async () => {
  const user = unused("u");
  const id = unused("s");
  await at.fleet.sessions.leave(await at.fleet.sessions.create({ user, sessionId: id }));
  await at.fleet.limits.set(user, { turnsPerMinute: 5, concurrentTurns: 5 });
  await at.commands.ok(["lock", id, "--user", user]);
  const client = await RawClient.as(door.url, await at.token(user));
  await client.requestOk("session.resume", { sessionId: id });
  const used = async () => (await at.fleet.limits.get(user)).used;
  const waiting = client.request("session.send", { sessionId: id, prompt: "hi" });
  await eventually("it waits", async () => (await used()).concurrentTurns === 1);
  await client.requestOk("session.abort", { sessionId: id });
  expect((await waiting).error?.data?.code).toBe("FLEET_TURN_FAILED");
  await eventually("it is given back", async () => (await used()).concurrentTurns === 0);
  expect((await used()).turnsPerMinute).toBe(0);
  client.socket.destroy();
});

it("a prompt that waits at the door is refused and not charged if the budget is used up before its turn", async () => {
  const user = unused("u");
  const id = unused("s");
  await at.fleet.sessions.leave(await at.fleet.sessions.create({ user, sessionId: id }));
  await at.fleet.limits.set(user, { concurrentTurns: 5, tokensPerDay: 1 });
  const { lease } = await at.commands.json<{ lease: { token: string } }>(["lock", id, "--user", user]);
  const client = await RawClient.as(door.url, await at.token(user));
  await client.requestOk("session.resume", { sessionId: id });
  const used = async () => (await at.fleet.limits.get(user)).used;
  const waiting = client.request("session.send", { sessionId: id, prompt: "hi" });
  await eventually("it waits", async () => (await used()).concurrentTurns === 1);
  await consume(user, "tokensPerDay");
  // The door checks the budget again only if the prompt has waited for more than 50 ms.
  await delay(100);
  await at.commands.ok(["unlock", id, "--token", lease.token]);
  expect((await waiting).error?.data).toMatchObject({ code: "FLEET_LIMIT_REACHED", limit: "tokensPerDay" });
  await eventually("it is given back", async () => (await used()).concurrentTurns === 0);
  expect(await used()).toMatchObject({ turnsPerMinute: 0, tokensPerDay: 5 });
  client.socket.destroy();
});

/** Opens a session. @returns a function that sends a prompt to it and resolves with the error */
const OPEN: Readonly<Record<string, (user: string, id: string) => Promise<() => Promise<unknown>>>> = {
  library: async (user, id) => {
    const session = await at.fleet.sessions.resume(id, { user });
    return async () => await at.fleet.sessions.send(session, "hi").catch((error: unknown) => error);
  },
  door: async (user, id) => {
    const client = await RawClient.as(door.url, await at.token(user));
    await client.requestOk("session.resume", { sessionId: id });
    return async () => (await client.request("session.send", { sessionId: id, prompt: "hi" })).error?.data;
  },
};

it.each(Object.keys(OPEN))(
  "a prompt at the entry point %s is not charged if the server refuses it because the session is lost",
  async (entry) => {
    const user = unused("u");
    const id = unused("s");
    await at.fleet.sessions.leave(await at.fleet.sessions.create({ user, sessionId: id }));
    await at.fleet.sessions.use(id, "hi", { user });
    await at.fleet.limits.set(user, { turnsPerMinute: 5, concurrentTurns: 5 });
    const send = await OPEN[entry]?.(user, id);
    await at.commands.ok(["evict", id]);
    const { serverId = "" } = (await store.sessions.read(id)) ?? {};
    await rm(join(homeOf(at.fleet.stateRoot, serverId), "session-state", id), { recursive: true });
    expect(await send?.()).toMatchObject({ code: "FLEET_SESSION_LOST" });
    expect((await at.fleet.limits.get(user)).used).toMatchObject({ turnsPerMinute: 0, concurrentTurns: 0 });
  },
);

it("a turn in a missing session is not charged; a completed turn counts against turnsPerMinute only", async () => {
  const user = unused("u");
  const id = unused("s");
  await at.fleet.sessions.leave(await at.fleet.sessions.create({ user, sessionId: id }));
  await at.fleet.limits.set(user, { turnsPerMinute: 1, concurrentTurns: 1 });
  await expect(at.fleet.sessions.use("missing", "hi", { user })).rejects.toMatchObject({
    code: "FLEET_SESSION_NOT_FOUND",
  });
  expect((await at.fleet.limits.get(user)).used).toMatchObject({ turnsPerMinute: 0, concurrentTurns: 0 });
  await at.fleet.sessions.use(id, "hi", { user });
  expect((await at.fleet.limits.get(user)).used).toMatchObject({ turnsPerMinute: 1, concurrentTurns: 0 });
  await expect(at.fleet.sessions.use(id, "hi", { user })).rejects.toMatchObject({
    limit: "turnsPerMinute",
    message: "This user may have 1 turn per minute (set by limit set), and 1 is used.",
    suggestions: expect.arrayContaining([expect.stringMatching(/^Try again in (1m|\d{1,2}s)\.$/)]),
  });
});

it("each prompt that a client sends during its running turn counts against turnsPerMinute", async () => {
  const user = unused("u");
  const id = unused("s");
  await at.fleet.sessions.leave(await at.fleet.sessions.create({ user, sessionId: id }));
  await at.fleet.limits.set(user, { turnsPerMinute: 3 });
  const client = await RawClient.as(door.url, await at.token(user));
  await client.requestOk("session.resume", { sessionId: id });
  const answers = await Promise.all(
    Array.from({ length: 5 }, async () => await client.request("session.send", { sessionId: id, prompt: "hi" })),
  );
  expect(answers.filter(({ error }) => error === undefined)).toHaveLength(3);
  client.socket.destroy();
});

/** Tries to create a session at an entry point. */
const NEW_SESSION: Readonly<Record<string, (user: string) => Promise<unknown>>> = {
  library: async (user) => await at.fleet.sessions.create({ user }).catch((error: unknown) => error),
  command: async (user) => await at.commands.run(["create", "--user", user]),
  http: async (user) => await at.ask("POST", "/v1/sessions", { token: await at.token(user) }),
  door: async (user) => {
    const client = await RawClient.as(door.url, await at.token(user));
    await client.request("session.create", { sessionId: unused("s") });
    client.socket.destroy();
  },
};
/** Makes a request on a new connection to an entry point. */
const NEW_CONNECTION: Readonly<Record<string, (user: string) => Promise<unknown>>> = {
  http: async (user) => await at.ask("GET", "/v1/me", { token: await at.token(user) }),
  door: async (user) => {
    const client = await RawClient.open(door.url);
    await client.request("connect", { token: await at.token(user) });
    client.socket.destroy();
  },
};

const refusalsOf = async (user: string) => await at.fleet.events.list({ user, type: "limit.reached" });

it.each(Object.keys(NEW_SESSION))(
  "the audit log records that a session over the limit was refused at the entry point %s",
  async (entry) => {
    const user = unused("u");
    await at.fleet.sessions.leave(await at.fleet.sessions.create({ user }));
    await at.fleet.limits.set(user, { sessions: 1 });
    for (let count = 0; count < 2; count++) await NEW_SESSION[entry]?.(user);
    // Each command is a new process. It does not know that an earlier one recorded this refusal, and records it again.
    const expected = { outcome: "refused", reason: "sessions", detail: "at most 1" };
    await eventually("the event", async () => (await refusalsOf(user)).length > 0);
    expect(await refusalsOf(user)).toEqual(
      Array.from({ length: entry === "command" ? 2 : 1 }, () => expect.objectContaining(expected)),
    );
  },
);

it.each(Object.keys(NEW_CONNECTION))(
  "the audit log has one event for several refused connections to the entry point %s",
  async (entry) => {
    const user = unused("u");
    await at.fleet.limits.set(user, { connections: 1 });
    const client = await RawClient.as(door.url, await at.token(user));
    for (let count = 0; count < 2; count++) await NEW_CONNECTION[entry]?.(user);
    client.socket.destroy();
    await eventually("the event", async () => (await refusalsOf(user)).length > 0);
    await at.token(user); // recording this event also writes a second event about the limit, if one waits
    const actor = expect.objectContaining({ user, tokenId: expect.any(String), via: entry });
    expect(await refusalsOf(user)).toEqual([
      expect.objectContaining({ actor, outcome: "refused", reason: "connections", detail: "at most 1" }),
    ]);
  },
);
