import { once } from "node:events";
import { mkdirSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { SessionView } from "../../src/sessions/view.js";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { startScriptedModel } from "../fixtures/models/scripted-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { eventsIn, openStream, TestApi } from "./harness.js";

const model = await startHeldModel();
let at: TestApi;
let alice: string;

beforeAll(async () => {
  at = await TestApi.open({ env: { ...model.env } });
  alice = await at.token("alice");
});
afterAll(async () => {
  model.release();
  await at[Symbol.asyncDispose]();
  await model.close();
});

async function created(fields: object = {}, token = alice): Promise<string> {
  const { json } = await at.ok("POST", "/v1/sessions", { token, body: { id: unused("s"), ...fields } });
  return json.session.id as string;
}

/** Begins a turn that lasts until the model releases it. */
async function heldTurn(id: string, { token = alice, query = "", signal = new AbortController().signal } = {}) {
  const word = unused("word");
  const path = `/v1/sessions/${id}/turns${query}`;
  const reply = at.ask("POST", path, { token, body: { prompt: `!hold ${word}` }, signal });
  reply.catch(() => "a test that fails does not wait for it");
  await eventually("the model", () => model.held(word) > 0);
  return { reply, word };
}

async function connected(): Promise<Socket> {
  const socket = connect(at.door.address.port, "127.0.0.1");
  await once(socket, "connect");
  return socket;
}

/** The bytes of a request for a turn. */
function requestOf(id: string, body: string): string {
  const head = [`POST /v1/sessions/${id}/turns HTTP/1.1`, "Host: localhost", `Authorization: Bearer ${alice}`];
  return [...head, "Content-Type: application/json", `Content-Length: ${body.length}`, "", body].join("\r\n");
}

describe("a session over HTTP", () => {
  it("the answer for a taken id is the same for somebody else's session as for files without a session", async () => {
    const bob = await at.token("bob");
    const [foreign, left] = [unused("foreign"), unused("left")];
    await at.ok("POST", "/v1/sessions", { token: alice, body: { id: foreign } });
    await at.ok("POST", "/v1/sessions", { token: bob });
    const [server] = await at.fleet.servers.list({ user: "bob" });
    mkdirSync(join(server?.home ?? "", "session-state", left));
    const refusal = async (id: string) => {
      const { status, json } = await at.ask("POST", "/v1/sessions", { token: bob, body: { id } });
      const { requestId: _, ...problem } = json;
      return { status, problem: JSON.stringify(problem).replaceAll(id, "ID") };
    };
    expect(await refusal(foreign)).toMatchObject({ status: 409, problem: expect.stringContaining("is taken") });
    expect(await refusal(foreign)).toEqual(await refusal(left));
    const create = async (user: string) =>
      await at.fleet.sessions.create({ user, sessionId: foreign }).catch((error: unknown) => error);
    expect(await create("bob")).toMatchObject({ suggestions: [expect.stringContaining("sessionId")] });
    expect(await create("alice")).toMatchObject({
      suggestions: [expect.anything(), expect.stringContaining("resume")],
    });
  });

  it("a session is created with the fields of the request, and found at the path in Location", async () => {
    const body = { purpose: "review", model: "gpt-5", ttl: "2h", members: ["bob"] };
    const { status, headers, json } = await at.ask("POST", "/v1/sessions", { token: alice, body });
    expect(status).toBe(201);
    expect(json.session).toMatchObject({ owner: "alice", purpose: "review", members: ["bob"], ttlMs: 7_200_000 });
    expect(json.session.id).toMatch(/^[0-9a-f-]{36}$/);
    const found = await at.ok("GET", headers.location ?? "", { token: alice });
    expect(found.json.session).toMatchObject({ id: json.session.id, kind: "collaborative", model: "gpt-5" });
  });

  it("a session can be created without a body, and every user who asks for a taken id gets 409", async () => {
    await at.ok("POST", "/v1/sessions", { token: alice });
    const id = await created();
    const bob = await at.token("bob");
    for (const token of [alice, bob]) {
      const { status, json } = await at.ask("POST", "/v1/sessions", { token, body: { id } });
      expect({ status, code: json.code }).toEqual({ status: 409, code: "FLEET_SESSION_EXISTS" });
      expect(json.detail).not.toContain("alice");
    }
  });

  it("a GET with If-None-Match and the session's ETag gets 304 until the session changes", async () => {
    const id = await created();
    const path = `/v1/sessions/${id}`;
    const etag = (await at.ok("GET", path, { token: alice })).headers.etag ?? "";
    expect(etag).toMatch(/^"[0-9a-f]{32}"$/);
    const headers = { "If-None-Match": `"other", W/${etag}` };
    const again = await at.ask("GET", path, { token: alice, headers });
    expect({ status: again.status, text: again.text, etag: again.headers.etag }).toEqual({
      status: 304,
      text: "",
      etag,
    });
    await at.ok("PATCH", path, { token: alice, body: { purpose: "changed" } });
    expect((await at.ask("GET", path, { token: alice, headers })).status).toBe(200);
  });

  it("a PATCH or DELETE with If-Match is refused with 412 if the session has changed since that ETag", async () => {
    const id = await created({ ttl: "2h" });
    const path = `/v1/sessions/${id}`;
    const ask = async (method: string, etag: string, body?: object) =>
      await at.ask(method, path, {
        token: alice,
        headers: { "If-Match": etag },
        ...(body === undefined ? {} : { body }),
      });
    const etag = (await at.ok("GET", path, { token: alice })).headers.etag ?? "";
    const changed = await ask("PATCH", `"other", ${etag}`, { purpose: "first" });
    expect(changed.status).toBe(200);
    for (const method of ["PATCH", "DELETE"]) {
      const refused = await ask(method, etag, method === "PATCH" ? { purpose: "second" } : undefined);
      expect(refused.json).toMatchObject({ status: 412, code: "FLEET_SESSION_CHANGED", retryable: false });
    }
    const next = changed.headers.etag ?? "";
    expect((await at.ok("GET", path, { token: alice })).headers.etag).toBe(next);
    // A weak ETag never matches, because the bytes of the answer may differ.
    expect((await ask("PATCH", `W/${next}`, { purpose: "second" })).status).toBe(412);
    expect((await ask("PATCH", "*", { purpose: "second" })).json.session.purpose).toBe("second");
    expect((await ask("DELETE", "*")).status).toBe(204);
    expect((await ask("DELETE", "*")).status).toBe(404);
  });

  it("only one of two simultaneous PATCH requests with the same If-Match changes the session", async () => {
    const id = await created();
    const path = `/v1/sessions/${id}`;
    const headers = { "If-Match": (await at.ok("GET", path, { token: alice })).headers.etag ?? "" };
    const both = ["one", "two"].map(
      async (purpose) => await at.ask("PATCH", path, { token: alice, body: { purpose }, headers }),
    );
    const statuses = (await Promise.all(both)).map(({ status }) => status);
    expect(statuses.toSorted()).toEqual([200, 412]);
  });

  it("the first prompt is the title of a session, unless it was created with a title, and a PATCH changes it", async () => {
    const titleNow = async (id: string) =>
      (await at.ok("GET", `/v1/sessions/${id}`, { token: alice })).json.session.title;
    const prompt = async (id: string, text: string) =>
      await at.ok("POST", `/v1/sessions/${id}/turns`, { token: alice, body: { prompt: text } });
    const untitled = await created();
    expect(await titleNow(untitled)).toBeNull();
    await prompt(untitled, "\n Fix the build\nand the tests");
    await prompt(untitled, "another");
    expect(await titleNow(untitled)).toBe("Fix the build");
    const titled = await created({ title: "Build" });
    await prompt(titled, "hello");
    expect(await titleNow(titled)).toBe("Build");
    const patch = async (title: string | null) =>
      await at.ask("PATCH", `/v1/sessions/${titled}`, { token: alice, body: { title } });
    for (const wrong of ["", " ", "a\nb", "\u202eb", "x".repeat(81)])
      expect(await patch(wrong)).toMatchObject({ status: 422, json: { code: "FLEET_USAGE_INVALID" } });
    expect(await titleNow(titled)).toBe("Build");
    await patch("Tests");
    expect(await titleNow(titled)).toBe("Tests");
    await patch(null);
    expect(await titleNow(titled)).toBeNull();
  });

  it("an operator's list of another user's sessions has no titles", async () => {
    const user = unused("titled");
    const own = await at.token(user);
    await at.ok("POST", "/v1/sessions", { token: own, body: { title: "Secret plan" } });
    const admin = await at.token("operator", ["admin"]);
    const titles = async (token: string, query: string) =>
      (await at.ok("GET", `/v1/sessions${query}`, { token })).json.sessions.map(
        (session: SessionView) => session.title,
      );
    expect(await titles(own, "")).toEqual(["Secret plan"]);
    expect(await titles(admin, `?user=${user}`)).toEqual([null]);
  });

  it("a PATCH changes only the fields that it names, and null resets a field to its default", async () => {
    const id = await created({ purpose: "review", ttl: "2h" });
    const patch = async (body: object) =>
      (await at.ok("PATCH", `/v1/sessions/${id}`, { token: alice, body })).json.session;
    expect(await patch({ ttl: "3h" })).toMatchObject({ purpose: "review", ttlMs: 10_800_000, kind: "private" });
    expect(await patch({ purpose: null, ttl: null })).toMatchObject({ purpose: null, ttlMs: 30 * 86_400_000 });
    expect(await patch({ members: ["bob", "bob"] })).toMatchObject({ kind: "collaborative", members: ["bob"] });
    const bob = await at.token("bob");
    await at.ok("GET", `/v1/sessions/${id}`, { token: bob });
    expect(await patch({ members: [] })).toMatchObject({ kind: "collaborative", members: [] });
    expect((await at.ask("GET", `/v1/sessions/${id}`, { token: bob })).status).toBe(404);
    const refused = await at.ask("PATCH", `/v1/sessions/${id}`, { token: alice, body: { members: ["alice"] } });
    expect({ status: refused.status, code: refused.json.code }).toEqual({ status: 422, code: "FLEET_USAGE_INVALID" });
  });

  it("pages of a list have each session once, even if sessions are used, made and deleted in between", async () => {
    const token = await at.token("pat");
    const ids: string[] = [];
    for (let n = 0; n < 5; n++) ids.push(await created({}, token));
    const seen: string[] = [];
    for (let next: string | null = ""; next !== null; ) {
      const cursor: string = next === "" ? "" : `&cursor=${next}`;
      const { json } = await at.ok("GET", `/v1/sessions?limit=2${cursor}`, { token });
      seen.push(...json.sessions.map(({ id }: { id: string }) => id));
      next = json.next;
      if (seen.length === 2) {
        await at.ok("POST", `/v1/sessions/${ids[0]}/turns`, { token, body: { prompt: "hello" } });
        await at.ok("DELETE", `/v1/sessions/${seen[1]}`, { token });
        await created({}, token);
      }
    }
    expect(seen).toEqual(ids.toReversed());
    const purpose = unused("of");
    const wanted = await created({ purpose }, token);
    const { json } = await at.ok("GET", `/v1/sessions?purpose=${purpose}&state=idle`, { token });
    expect(json).toMatchObject({ sessions: [{ id: wanted }], next: null });
  });
});

describe("a turn over HTTP", () => {
  it("a turn is answered with its reply, id and usage, and appears in the transcript", async () => {
    const id = await created();
    const { json } = await at.ok("POST", `/v1/sessions/${id}/turns`, { token: alice, body: { prompt: "hello" } });
    expect(json).toEqual({
      turn: expect.stringMatching(/^[0-9a-f-]{36}$/),
      outcome: "completed",
      reply: "[turn 1] hello",
      usage: {
        requests: 1,
        inputTokens: expect.any(Number),
        outputTokens: expect.any(Number),
        cacheReadTokens: 0,
        credits: null,
      },
    });
    await at.ok("POST", `/v1/sessions/${id}/turns`, { token: alice, body: { prompt: "and now" } });
    const all = (await at.ok("GET", `/v1/sessions/${id}/transcript`, { token: alice })).json;
    expect(all.entries.map(({ text }: { text: string }) => text)).toEqual([
      "hello",
      "[turn 1] hello",
      "and now",
      "[turn 2] and now",
    ]);
    const last = (await at.ok("GET", `/v1/sessions/${id}/transcript?turns=1`, { token: alice })).json;
    expect(last.entries.map(({ turn }: { turn: number }) => turn)).toEqual([2, 2]);
  });

  it("a turn continues when the client disconnects", async () => {
    const [id, other] = [await created(), await created()];
    const [leaving, aborting] = [new AbortController(), new AbortController()];
    const { word } = await heldTurn(id, { signal: leaving.signal });
    const aborted = await heldTurn(other, { signal: aborting.signal, query: "?abort=disconnect" });
    leaving.abort();
    aborting.abort();
    // The first client left first, so an abort of its turn would have reached the server before this abort.
    await eventually("the abort of the other turn", () => model.held(aborted.word) === 0);
    await at.ok("POST", `/v1/sessions/${other}/turns`, { token: alice, body: { prompt: "hello" } });
    expect(model.held(word)).toBe(1);
    model.release(word);
    const transcript = async () => (await at.ok("GET", `/v1/sessions/${id}/transcript`, { token: alice })).text;
    await eventually("the reply", async () => (await transcript()).includes(`[turn 1] ${word}`));
  });

  it("if a client disconnects before its request is complete, no turn begins and no failure is reported", async () => {
    const id = await created();
    const client = await connected();
    const begun = at.requests.length;
    client.end(requestOf(id, JSON.stringify({ prompt: "hello" })).slice(0, -5));
    const left = () => at.requests.slice(begun).find(({ method }) => method === "POST /v1/sessions/{id}/turns");
    expect(await eventually("the report", left)).toMatchObject({ user: "alice", outcome: "abandoned" });
    expect(at.events.filter(({ event }) => event === "failed")).toEqual([]);
    expect((await at.ok("GET", `/v1/sessions/${id}/transcript`, { token: alice })).json.entries).toEqual([]);
    client.destroy();
  });

  it("a turn with abort=disconnect is aborted when the client disconnects", async () => {
    const id = await created();
    const leaving = new AbortController();
    const { word } = await heldTurn(id, { signal: leaving.signal, query: "?abort=disconnect" });
    leaving.abort();
    await eventually("the abort", () => model.held(word) === 0);
    await eventually("the report", () => at.requests.find(({ outcome }) => outcome === "abandoned"));
    expect(at.events.filter(({ event }) => event === "failed")).toEqual([]);
  });

  it("a turn is aborted after its timeout, and answered with 504", async () => {
    const id = await created();
    const body = { prompt: "!hold on", timeout: "300ms" };
    const { status, json } = await at.ask("POST", `/v1/sessions/${id}/turns`, { token: alice, body });
    expect({ status, code: json.code }).toEqual({ status: 504, code: "FLEET_TURN_TIMEOUT" });
  });

  it("an aborted turn is aborted in the answer, the stream, the audit log and the transcript", async () => {
    await using scripted = await startScriptedModel();
    const env = {
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: scripted.baseUrl,
      COPILOTFLEET_SESSION_MODEL: "gpt-5",
    };
    await using other = await TestApi.open({ env });
    const token = await other.token("alice");
    const [id, left] = ["aborted", "left"];
    for (const each of [id, left]) await other.ok("POST", "/v1/sessions", { token, body: { id: each } });
    const path = `/v1/sessions/${id}/turns`;
    const prompt = "!pause here one two three";
    const headers = { Accept: "text/event-stream", "Idempotency-Key": "a" };
    const stream = other.ok("POST", path, { token, body: { prompt }, headers });
    await eventually("the prompt", () => scripted.shown(prompt) === 1);
    const heard = openStream(other.door.url, `/v1/sessions/${id}/events`, {
      token,
      signal: AbortSignal.timeout(60_000),
    });
    await eventually("the prompt in the history", () => heard.text.includes("user.message"));
    await other.ok("POST", `/v1/sessions/${id}/abort`, { token });
    const events = eventsIn((await stream).text);
    expect(events.map(({ event }) => event)).toContain("abort");
    expect(events.at(-1)).toMatchObject({
      event: "turn.end",
      data: { outcome: "aborted", reply: expect.stringContaining("one") },
    });
    const again = await other.ok("POST", path, { token, body: { prompt }, headers: { "Idempotency-Key": "a" } });
    expect(again.json).toMatchObject({ outcome: "aborted" });

    const leaving = new AbortController();
    const cancelled = other.ask("POST", `/v1/sessions/${left}/turns?abort=disconnect`, {
      token,
      body: { prompt: "!pause there four five" },
      signal: leaving.signal,
    });
    cancelled.catch(() => "the client leaves");
    await eventually("the prompt", () => scripted.shown("there four") === 1);
    leaving.abort();
    const ends = async () =>
      (await other.fleet.events.list({ type: "turn.ended" })).map(({ sessionId, outcome, reason }) => [
        sessionId,
        outcome,
        reason,
      ]);
    await eventually("both ends", async () => (await ends()).length === 2);
    expect(await ends()).toEqual(
      expect.arrayContaining([
        [id, "aborted", null],
        [left, "aborted", null],
      ]),
    );
    for (const each of [id, left]) {
      const { entries } = (await other.ok("GET", `/v1/sessions/${each}/transcript`, { token })).json;
      expect(entries.at(-1)).toMatchObject({ failure: "The turn was cancelled.", outcome: "aborted" });
    }
  });

  it("the owner can neither abort a member's turn nor delete the session during it", async () => {
    const id = await created({ members: ["bob"] });
    const bob = await at.token("bob");
    const { reply, word } = await heldTurn(id, { token: bob });
    const refused = await at.ask("POST", `/v1/sessions/${id}/abort`, { token: alice });
    expect({ status: refused.status, code: refused.json.code }).toEqual({ status: 409, code: "FLEET_SESSION_LOCKED" });
    expect((await at.ask("DELETE", `/v1/sessions/${id}`, { token: alice })).status).toBe(409);
    model.release(word);
    expect((await reply).json.reply).toBe(`[turn 1] ${word}`);
  });

  it("two turns in the same session run one after the other, and each client gets its own reply", async () => {
    const id = await created();
    const first = await heldTurn(id);
    const second = at.ask("POST", `/v1/sessions/${id}/turns`, { token: alice, body: { prompt: "the second" } });
    model.release(first.word);
    expect((await first.reply).json.reply).toBe(`[turn 1] ${first.word}`);
    expect((await second).json.reply).toBe("[turn 2] the second");
  });
});

describe("GET /v1/me", () => {
  it("GET /v1/me shows the caller, the caller's limits, and how much of them is used", async () => {
    const token = await at.token("mia", ["read"]);
    const { json } = await at.ok("GET", "/v1/me", { token });
    expect(json).toMatchObject({
      user: "mia",
      scopes: ["read"],
      groups: [],
      via: "token",
      tokenId: token.split("_")[1],
      sessionId: null,
      limits: { connections: 16, sessions: 1000 },
      used: { sessions: 0, connections: 1 },
    });
  });
});
