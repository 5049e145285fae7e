import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createKeyed } from "../../src/sessions/use/keyed.js";
import { openStore } from "../../src/store/store.js";
import { eventually } from "../fixtures/eventually.js";
import { startScriptedModel } from "../fixtures/models/scripted-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "./harness.js";

let model: Awaited<ReturnType<typeof startScriptedModel>>;
let at: TestApi;
let token: string;
beforeAll(async () => {
  model = await startScriptedModel();
  const env = {
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    COPILOTFLEET_SESSION_MODEL: "gpt-5",
  };
  at = await TestApi.open({ env });
  token = await at.token("alice");
});
afterAll(async () => {
  await at[Symbol.asyncDispose]();
  await model[Symbol.asyncDispose]();
});

async function session(): Promise<string> {
  const id = unused("keyed");
  await at.ok("POST", "/v1/sessions", { token, body: { id } });
  return id;
}

async function send(id: string, prompt: string, key: string, { by = token, headers = {}, ...more } = {}) {
  const body = { prompt, ...more };
  const path = `/v1/sessions/${id}/turns`;
  return await at.ask("POST", path, { token: by, body, headers: { "Idempotency-Key": key, ...headers } });
}

async function prompts(id: string): Promise<string[]> {
  const found: string[] = [];
  for await (const event of at.fleet.sessions.followEvents(id, { user: "alice" }))
    if (event.type === "user.message") found.push(event.data.content);
  return found;
}

/** The names of the events in a stream. */
const namesIn = (text: string) => [...text.matchAll(/^event: (.*)$/gm)].map(([, name]) => name);

describe("requests with the same Idempotency-Key", () => {
  it("simultaneous and later requests with the same Idempotency-Key run one turn, and all get its reply", async () => {
    const id = await session();
    const prompt = `${id}.`;
    const first = await send(id, prompt, id);
    expect(first).toMatchObject({ status: 200, json: { reply: `you said: ${prompt}`, usage: { requests: 1 } } });
    expect((await send(id, prompt, `"${id}"`)).json).toEqual(first.json);
    const again = `${id}, again.`;
    const replies = await Promise.all([1, 2, 3].map(async () => await send(id, again, `${id}-2`)));
    expect(new Set(replies.map(({ text }) => text)).size, replies[0]?.text).toBe(1);
    expect(replies[0]?.json.reply).toBe(`you said: ${again}`);
    expect([model.shown(prompt), model.shown(again)]).toEqual([1, 1]);
    expect(await prompts(id)).toEqual([prompt, again]);
  });

  it("a request with a used Idempotency-Key can stream the turn's events, during and after the turn", async () => {
    const id = await session();
    const prompt = `!hold ${id}`;
    const first = send(id, prompt, id);
    await eventually("the turn", () => model.shown(prompt) === 1);
    const during = send(id, prompt, id, { headers: { Accept: "text/event-stream" } });
    const waiting = send(id, prompt, id);
    model.letGo(id);
    const { json } = await first;
    expect((await waiting).json).toEqual(json);
    for (const { text } of [await during, await send(id, prompt, id, { headers: { Accept: "text/event-stream" } })]) {
      const names = namesIn(text);
      expect(names[0]).toBe("user.message");
      expect(names.slice(-2)).toEqual(["assistant.message", "turn.end"]);
      expect(text).toContain(JSON.stringify(json));
    }
    expect(model.shown(prompt)).toBe(1);
  });

  it("a used Idempotency-Key is refused for another prompt, timeout or session, but not for another user", async () => {
    const [id, other] = [await session(), await session()];
    await send(id, `${id}.`, id);
    const reused = { status: 422, json: { code: "FLEET_IDEMPOTENCY_KEY_REUSED" } };
    expect(await send(id, "another.", id)).toMatchObject(reused);
    expect(await send(id, `${id}.`, id, { timeout: "1m" } as object)).toMatchObject(reused);
    expect(await send(other, `${id}.`, id)).toMatchObject(reused);
    const bob = await at.token("bob");
    const his = unused("bob");
    await at.ok("POST", "/v1/sessions", { token: bob, body: { id: his } });
    expect(await send(his, "of bob.", id, { by: bob })).toMatchObject({
      status: 200,
      json: { reply: "you said: of bob." },
    });
  });

  it("an Idempotency-Key is refused with 422 if it is empty, too long, or not visible ASCII", async () => {
    const id = await session();
    for (const key of ["", '""', "two words", "a".repeat(256), "ä"]) {
      const { status, json } = await send(id, "hello.", key);
      expect([status, json.code], key).toEqual([422, "FLEET_USAGE_INVALID"]);
      expect(json.detail).toMatch(/^The header "Idempotency-Key" is ".*Allowed: 1 to 255 visible ASCII characters\.$/);
    }
    expect((await send(id, "hello.", "a".repeat(255))).status).toBe(200);
  });

  it("a repeated Idempotency-Key returns the error of a failed turn, or runs a turn that never began", async () => {
    const id = await session();
    const prompt = `!hold ${id}`;
    const first = await send(id, prompt, id, { timeout: "4s" } as object);
    expect(first).toMatchObject({ status: 504, json: { code: "FLEET_TURN_TIMEOUT" } });
    const { requestId: _, suggestions: __, ...problem } = first.json;
    expect((await send(id, prompt, id, { timeout: "4s" } as object)).json).toMatchObject(problem);
    expect(model.shown(prompt)).toBe(1);
    const key = `${id}-2`;
    expect((await send(`${id}-absent`, "hello.", key)).status).toBe(404);
    expect((await send(id, "hello.", key)).status).toBe(200);
  });
});

describe("new sessions with an Idempotency-Key", () => {
  const create = async (key: string, body?: object, by = token) => {
    const sent = { token: by, headers: { "Idempotency-Key": key }, ...(body === undefined ? {} : { body }) };
    return await at.ask("POST", "/v1/sessions", sent);
  };
  const idsOf = async (user: string) => (await at.fleet.sessions.list({ user })).map(({ id }) => id);

  it("simultaneous and later requests with the same Idempotency-Key create one session", async () => {
    const by = await at.token("carol");
    const replies = await Promise.all([1, 2, 3].map(async () => await create("one", { purpose: "review" }, by)));
    replies.push(await create("one", { purpose: "review" }, by));
    expect(replies.map(({ status }) => status)).toEqual([201, 201, 201, 201]);
    expect(new Set(replies.map(({ json }) => json.session.id)).size).toBe(1);
    expect(new Set(replies.map(({ headers }) => headers.location)).size).toBe(1);
    expect(await idsOf("carol")).toHaveLength(1);
    const reused = { status: 422, json: { code: "FLEET_IDEMPOTENCY_KEY_REUSED" } };
    expect(await create("one", { purpose: "other" }, by)).toMatchObject(reused);
    const [id = ""] = await idsOf("carol");
    const turn = { token: by, body: { prompt: "hello." }, headers: { "Idempotency-Key": "one" } };
    expect(await at.ask("POST", `/v1/sessions/${id}/turns`, turn)).toMatchObject(reused);
    await at.ok("DELETE", `/v1/sessions/${id}`, { token: by });
    expect(await create("one", { purpose: "review" }, by)).toMatchObject({ status: 404 });
  });

  it("creating a session with a taken id is refused, and the Idempotency-Key can be used again", async () => {
    const id = await session();
    const key = unused("taken");
    for (let time = 0; time < 2; time++)
      expect(await create(key, { id })).toMatchObject({ status: 409, json: { code: "FLEET_SESSION_EXISTS" } });
    expect((await create(key, { id: unused("free") })).status).toBe(201);
  });

  it("a repeated Idempotency-Key creates the session if the first try crashed after recording the key", async () => {
    const parts = { user: "dora", key: "cut", content: {} };
    const store = openStore("file", at.fleet.stateRoot);
    const crash = createKeyed(store.keyedTurns, {
      ...parts,
      create: async () => await Promise.reject(new Error("killed")),
      get: async () => await Promise.reject(new Error("unused")),
    });
    await expect(crash).rejects.toThrow("killed");
    const { sessionId } = (await store.keyedTurns.read("dora", "cut")) ?? {};
    await store.close();
    const { json } = await create("cut", undefined, await at.token("dora"));
    expect(json.session.id).toBe(sessionId);
  });
});
