import * as v from "valibot";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ROUTES } from "../../src/http/app.js";
import type { Action, Scope } from "../../src/identity/identity.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi, used } from "./harness.js";

/**
 * Calls every route with every scope, for three sessions each: one that the caller owns, one of which the caller is a
 * member, and one of another user.
 */

const SCOPES = ["none", "read", "use", "admin", "issue"] as const;
const RELATIONS = ["own", "member", "foreign"] as const;
type Relation = (typeof RELATIONS)[number];

/**
 * The answers for each action and scope, one letter for each of {@link RELATIONS}: o = OK, h = hidden (404), s = scope
 * missing (403), n = no token (401).
 */
const EXPECTED: Readonly<Record<Action, Readonly<Record<(typeof SCOPES)[number], string>>>> = {
  read: { none: "nnn", read: "ooh", use: "ooh", admin: "ooh", issue: "sss" },
  use: { none: "nnn", read: "sss", use: "ooh", admin: "ooh", issue: "sss" },
  readAll: { none: "n", read: "o", use: "o", admin: "o", issue: "s" },
  useAll: { none: "nnn", read: "sss", use: "ooh", admin: "ooh", issue: "sss" },
  manage: { none: "n", read: "s", use: "s", admin: "o", issue: "s" },
  // Otherwise, the scope admin would open every conversation.
  issue: { none: "n", read: "s", use: "s", admin: "s", issue: "o" },
};

interface Row {
  action: Action;
  /** The part of the path in place of `{id}`. Default: the session with this relation. */
  id?: () => string | Promise<string>;
  /** Default: no query. */
  query?: string;
  body?: () => object;
  /** Only the owner of the session may do it. A member gets 404, as if the session did not exist. */
  isOwners?: true;
  /** The action answers a question, which the agent asks in a turn of the caller. */
  isAsked?: true;
  /** The action needs a session that nothing else in this test uses. */
  isDestructive?: true;
}

let at: TestApi;
const fixed: Partial<Record<Relation, string>> = {};

/** A row for each route. The test fails for a route without a row. */
const ROWS: Readonly<Record<string, Row>> = {
  "GET /v1/me": { action: "read" },
  "POST /v1/sessions": { action: "useAll", body: () => ({ id: unused("made") }) },
  "GET /v1/sessions": { action: "readAll" },
  "GET /v1/sessions/{id}": { action: "read" },
  "PATCH /v1/sessions/{id}": { action: "useAll", body: () => ({ purpose: "changed" }), isOwners: true },
  "DELETE /v1/sessions/{id}": { action: "useAll", isOwners: true, isDestructive: true },
  "POST /v1/sessions/{id}/turns": { action: "use", body: () => ({ prompt: "hello" }) },
  "POST /v1/sessions/{id}/abort": { action: "use" },
  "GET /v1/sessions/{id}/events": { action: "read", query: "?follow=false" },
  "GET /v1/sessions/{id}/transcript": { action: "read" },
  "GET /v1/sessions/{id}/requests": { action: "read" },
  "POST /v1/sessions/{id}/requests/{requestId}": { action: "use", body: () => ({ answer: "blue" }), isAsked: true },
  "GET /v1/usage": { action: "readAll" },
  "GET /v1/events": { action: "readAll" },
  "GET /v1/servers": { action: "manage" },
  "POST /v1/servers/{id}/restart": { action: "manage", id: () => serverOf("carol") },
  "POST /v1/servers/{id}/stop": { action: "manage", id: () => serverOf("carol") },
  "POST /v1/users/{id}/start": { action: "manage", id: () => "carol" },
  "POST /v1/servers/{id}/drain": { action: "manage", id: () => serverOf("carol") },
  "GET /v1/hosts": { action: "manage" },
  "GET /v1/samples": { action: "manage" },
  "GET /v1/tokens": { action: "manage" },
  "POST /v1/tokens": { action: "issue", body: () => ({ user: "carol", ttl: "1h", label: "CI" }) },
  "GET /v1/users/{id}/limits": { action: "manage", id: () => "carol" },
  "PUT /v1/users/{id}/limits": { action: "manage", id: () => "carol", body: () => ({ turnsPerMinute: 100 }) },
  "GET /v1/users": { action: "manage" },
  "POST /v1/users/{id}/suspend": {
    action: "manage",
    id: () => unused("leaver"),
    body: () => ({ reason: "lost laptop" }),
  },
  "POST /v1/users/{id}/resume": {
    action: "manage",
    id: async () => (await at.fleet.users.suspend(unused("leaver"))).user,
  },
  "DELETE /v1/users/{id}": {
    action: "manage",
    id: async () => (await at.fleet.tokens.issue(unused("leaver"))).user,
  },
  "DELETE /v1/tokens/{id}": { action: "manage", id: async () => (await at.fleet.tokens.issue("carol")).id },
};

async function serverOf(user: string): Promise<string> {
  return (await at.fleet.servers.spawn(user)).server.id;
}

const QUESTION = '!tool ask_user {"question": "Which colour?"}';

/** Makes the agent ask the caller a question. Disposing ends the turn. */
async function question(session: string): Promise<AsyncDisposable & { id: string }> {
  const stop = new AbortController();
  const options = { user: "alice", interactive: true, signal: stop.signal };
  let ask: (id: string) => void = () => undefined;
  const asked = new Promise<string>((resolve) => (ask = resolve));
  const turn = at.fleet.sessions.use(session, QUESTION, { ...options, onRequest: ({ request }) => ask(request.id) });
  const over = turn.then(
    () => undefined,
    () => undefined,
  );
  const end = async () => {
    stop.abort();
    await over;
  };
  return { id: await asked, [Symbol.asyncDispose]: end };
}

async function sessionOf(relation: Relation): Promise<string> {
  const sessionId = unused(relation);
  const user = relation === "own" ? "alice" : "bob";
  const members = relation === "member" ? { members: ["alice"] } : {};
  const session = await at.fleet.sessions.create({ user, sessionId, ...members });
  if (relation === "foreign") await at.fleet.sessions.send(session, "the word is plugh");
  await at.fleet.sessions.leave(session);
  return sessionId;
}

beforeAll(async () => {
  used.clear();
  at = await TestApi.open();
  for (const relation of RELATIONS) fixed[relation] = await sessionOf(relation);
});
afterAll(async () => await at[Symbol.asyncDispose]());

describe("the routes of the API", () => {
  it("ROWS has a row for each route of the API, and no other rows", () => {
    expect(Object.keys(ROWS).sort()).toEqual(ROUTES.map(({ name }) => name).sort());
  });

  it.each(ROUTES.map((route) => [route.name, route] as const))(
    "%s answers as the policy decides, for each scope and for the caller's own, shared and foreign sessions",
    async (name, route) => {
      const { action, id, query = "", body, isOwners, isAsked, isDestructive } = ROWS[name] as Row;
      expect(route.action).toBe(action);
      const relations = route.about === "session" ? RELATIONS : (["own"] as const);
      for (const scope of SCOPES) {
        const token = scope === "none" ? undefined : await at.token("alice", [scope]);
        let cells = "";
        for (const relation of relations) {
          const session = isDestructive === true ? await sessionOf(relation) : fixed[relation];
          const isReached = isAsked === true && relation !== "foreign" && scope !== "none" && scope !== "read";
          await using asking = isReached ? await question(session ?? "") : null;
          const named = route.path.replace("{requestId}", asking?.id ?? "nothing");
          const path = named.replace("{id}", (await id?.()) ?? session ?? "") + query;
          const given = body === undefined ? {} : { body: body() };
          const { status, text, json } = await at.ask(route.method, path, { token, ...given });
          const letter = { 401: "n", 403: "s", 404: "h", [route.answer.status ?? 200]: "o" }[status];
          cells += letter ?? `?${status} ${text}`;
          if (letter === "o" && route.answer.schema !== null) expect(v.is(route.answer.schema, json), text).toBe(true);
          if (letter !== "o") expect(json).toMatchObject({ status, code: expect.stringMatching(/^FLEET_/) });
          if (relation === "foreign") expect(text).not.toContain("plugh");
        }
        const expected = EXPECTED[action][scope].slice(0, relations.length);
        expect(cells, `with ${scope}`).toBe(isOwners === true ? expected.replace("ooh", "ohh") : expected);
      }
    },
  );

  it("a token for one session gives access to that session only", async () => {
    const [own = "", other = await sessionOf("own")] = [fixed.own];
    const token = await at.token("alice", ["use"] satisfies Scope[], own);
    const statusOf = async (method: string, path: string, body?: object) =>
      (await at.ask(method, path, { token, ...(body === undefined ? {} : { body }) })).status;
    expect(await statusOf("GET", `/v1/sessions/${own}`)).toBe(200);
    expect(await statusOf("POST", `/v1/sessions/${own}/turns`, { prompt: "hello" })).toBe(200);
    expect(await statusOf("GET", `/v1/sessions/${other}`)).toBe(404);
    expect(await statusOf("GET", "/v1/sessions")).toBe(403);
    expect(await statusOf("POST", "/v1/sessions", {})).toBe(403);
    expect(await statusOf("PATCH", `/v1/sessions/${own}`, { members: ["mallory"] })).toBe(403);
    expect(await statusOf("DELETE", `/v1/sessions/${own}`)).toBe(403);
    expect((await at.ok("GET", "/v1/me", { token })).json).toMatchObject({ user: "alice", sessionId: own });
  });
});
