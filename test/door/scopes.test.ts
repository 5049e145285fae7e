import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { actionOf, handlingOf, knownMethods } from "../../src/door/policy/methods.js";
import type { Scope } from "../../src/identity/identity.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const usable = knownMethods().filter((method) => handlingOf(method).handler !== "refuse");
const codeOf = async (client: RawClient, method: string, params: object) =>
  (await client.request(method, params)).error?.data?.code;

describe("the front door, with the scopes of tokens,", () => {
  let at: DoorFleet;
  let alice: RawClient;
  const own = "alices-own";
  const shared = "bobs-shared";
  const foreign = "bobs-own";

  const as = async (scopes: readonly Scope[], sessionId?: string) => {
    const bound = sessionId === undefined ? {} : { sessionId };
    const { token } = await at.fleet.tokens.issue("alice", { scopes, ...bound });
    return await RawClient.as(at.url, token);
  };
  const historyOf = async (id: string) => {
    const record = await at.store.sessions.read(id);
    const server = (await at.store.registry.read()).servers[record?.serverId ?? ""];
    return readFileSync(join(server?.home ?? "", "session-state", id, "events.jsonl"), "utf8");
  };

  beforeAll(async () => {
    at = await DoorFleet.open();
    alice = await RawClient.as(at.url, await at.token("alice"), true);
    await alice.requestOk("session.create", { sessionId: own });
    await alice.turnOk(own, "the word is xyzzy");
    for (const [sessionId, members] of [
      [shared, ["alice"]],
      [foreign, []],
    ] as const) {
      const session = await at.fleet.sessions.create({ user: "bob", sessionId, members: [...members] });
      await at.fleet.sessions.send(session, "the word is plugh");
      await at.fleet.sessions.leave(session);
    }
    await eventually("the record of the turn", async () => (await at.store.sessions.read(own))?.turns === 1);
  });
  afterAll(async () => {
    alice.socket.destroy();
    await at[Symbol.asyncDispose]();
  });

  it("refuses a client with only the scope read every method that needs the scope use, and changes nothing", async () => {
    const reader = await as(["read"]);
    const before = [await historyOf(own), await at.store.sessions.list()];
    const refused = usable.filter((method) => actionOf(handlingOf(method)).startsWith("use"));
    for (const method of refused) {
      for (const sessionId of [own, foreign]) {
        const { error } = await reader.request(method, { sessionId, prompt: "x", name: "x", options: {} });
        expect(error, method).toMatchObject({
          data: { code: "FLEET_SCOPE_MISSING" },
          message: `"${method}" needs the scope "use". The scopes of this credential: "read".`,
        });
      }
    }
    expect([await historyOf(own), await at.store.sessions.list()]).toEqual(before);
    expect(at.events).toContainEqual(
      expect.objectContaining({ event: "denied", method: "session.send", code: "FLEET_SCOPE_MISSING", sessionId: own }),
    );
  });

  it("lets a client with only the scope read open and read each session that the user owns or is a member of", async () => {
    const reader = await as(["read"]);
    for (const [sessionId, word] of [
      [own, "xyzzy"],
      [shared, "plugh"],
    ] as const) {
      await reader.requestOk("session.resume", { sessionId });
      const { result } = await reader.requestOk("session.getMessages", { sessionId });
      expect(JSON.stringify(result)).toContain(word);
      expect(await codeOf(reader, "session.send", { sessionId, prompt: "no" })).toBe("FLEET_SCOPE_MISSING");
      await reader.requestOk("session.detach", { sessionId });
    }
    expect(JSON.stringify((await reader.requestOk("session.list")).result)).toContain(own);
    expect(await codeOf(reader, "session.create", {})).toBe("FLEET_SCOPE_MISSING");
  });

  it("changes neither the history nor the turns of a session when a client with only the scope read opens it", async () => {
    const sessionId = unused("watched");
    await alice.requestOk("session.create", {
      sessionId,
      systemMessage: { mode: "replace", content: "the instructions of the owner" },
      tools: [{ name: "own_tool", description: "d", parameters: { type: "object", properties: {} } }],
      streaming: true,
    });
    await alice.turnOk(sessionId, "one");
    const before = await historyOf(sessionId);
    const instructions = at.model.instructions();
    expect(instructions).toContain("the instructions of the owner");
    const reader = await as(["read"]);
    await reader.requestOk("session.resume", {
      sessionId,
      model: "other-model",
      systemMessage: { mode: "replace", content: "the instructions of the reader" },
      tools: [{ name: "readers_tool", description: "d", parameters: { type: "object", properties: {} } }],
      hooks: true,
    });
    expect(await historyOf(sessionId)).toBe(before);
    const since = alice.events(sessionId).length;
    await alice.turnOk(sessionId, "two");
    expect(at.model.instructions()).toBe(instructions);
    expect(alice.events(sessionId).slice(since)).toContain("assistant.message_delta");
    await eventually("the turn at the reader", () => reader.events(sessionId).includes("session.idle"));
    const after = (await historyOf(sessionId)).slice(before.length);
    for (const text of ["readers_tool", "the instructions of the reader", "other-model", "session.resume"])
      expect(after).not.toContain(text);
    const { result } = await alice.requestOk("session.tools.getCurrentMetadata", { sessionId });
    expect(JSON.stringify(result)).toContain("own_tool");
    expect(JSON.stringify(result)).not.toContain("readers_tool");
  });

  it("gives a token no access to another user's session, whatever scopes the token has", async () => {
    for (const scopes of [["read"], ["use"], ["admin"], ["read", "use", "admin"]] as const) {
      const client = await as(scopes);
      for (const method of ["session.resume", "session.getMessages"])
        expect(await codeOf(client, method, { sessionId: foreign }), `${scopes}`).toBe("FLEET_SESSION_NOT_FOUND");
      const sent = await codeOf(client, "session.send", { sessionId: foreign, prompt: "mine" });
      expect(sent).toBe(
        scopes[0] === "read" && scopes.length === 1 ? "FLEET_SCOPE_MISSING" : "FLEET_SESSION_NOT_FOUND",
      );
    }
  });

  it("lets tokens with the scope use or admin run turns in sessions that the user owns or is a member of", async () => {
    for (const scope of ["use", "admin"] as const) {
      const client = await as([scope]);
      const sessionId = unused("made");
      await client.requestOk("session.create", { sessionId });
      for (const id of [sessionId, own, shared]) {
        await client.requestOk("session.resume", { sessionId: id });
        await client.turnOk(id, `a turn with ${scope}`);
      }
      await client.requestOk("session.delete", { sessionId });
    }
  });

  it("limits a token that is bound to one session to that session", async () => {
    const other = unused("other");
    await alice.requestOk("session.create", { sessionId: other });
    await alice.turnOk(other, "the word is frotz");
    const bound = await as(["admin"], own);
    const hidden = { error: { data: { code: "FLEET_SESSION_NOT_FOUND" } } };
    for (const sessionId of [other, shared, foreign]) {
      expect(await bound.request("session.resume", { sessionId })).toMatchObject(hidden);
      expect(await bound.request("session.send", { sessionId, prompt: "x" })).toMatchObject(hidden);
      expect((await bound.requestOk("session.getMetadata", { sessionId })).result).toEqual({});
    }
    const { result } = await bound.requestOk("session.list");
    expect((result as { sessions: { sessionId: string }[] }).sessions.map(({ sessionId }) => sessionId)).toEqual([own]);
    expect((await bound.requestOk("session.getLastId")).result).toEqual({ sessionId: own });
    for (const method of usable.filter((name) => actionOf(handlingOf(name)).endsWith("All")))
      expect(await codeOf(bound, method, { sessionId: own, sessionIds: [own] }), method).toBe("FLEET_SCOPE_MISSING");
    await bound.requestOk("session.resume", { sessionId: own });
    await alice.turnOk(other, "the word is blorb");
    await bound.turnOk(own, "mine");
    const pushed = bound.received.filter(({ method }) => method !== undefined);
    expect(JSON.stringify(pushed)).toContain("mine");
    expect(JSON.stringify(pushed)).not.toContain(other);
  });
});
