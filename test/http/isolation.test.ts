import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { OPERATIONS } from "../fixtures/api/document.js";
import { parseReply, rawReply } from "../fixtures/api/raw-reply.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "./harness.js";

/** The id of alice's session, and words from it. No other user may get them in any answer. */
const SECRET = "a-secret-session";
const CANARIES = ["xyzzy", "canary-purpose"];

let at: TestApi;
let alice: string;
let mallory: string;

beforeAll(async () => {
  at = await TestApi.open();
  [alice, mallory] = [await at.token("alice"), await at.token("mallory", ["read", "use"])];
  const body = { id: SECRET, purpose: "canary-purpose", members: ["carol"] };
  await at.ok("POST", "/v1/sessions", { token: alice, body });
  await at.ok("POST", `/v1/sessions/${SECRET}/turns`, { token: alice, body: { prompt: "the word is xyzzy" } });
});
afterAll(async () => await at[Symbol.asyncDispose]());

/** The complete answer, without the parts that differ for each request: date, request id and length. */
async function everything(token: string, line: string, headers: readonly string[], body = ""): Promise<string> {
  const head = [line, "Host: localhost", `Authorization: Bearer ${token}`, "Connection: close", ...headers];
  if (body !== "") head.push("Content-Type: application/json", `Content-Length: ${body.length}`);
  const received = await rawReply(at.door.address.port, Buffer.from(`${head.join("\r\n")}\r\n\r\n${body}`));
  return received.replace(/Date: .*|[0-9a-f]{8}-[0-9a-f-]{27}/gi, "").replace(/Content-Length: \d+/i, "");
}

const BODIES: Readonly<Record<string, string>> = {
  runTurn: '{"prompt":"mine now"}',
  updateSession: '{"members":["mallory"]}',
};
const CONDITIONS = [
  [],
  ["If-None-Match: *"],
  ["If-Match: *"],
  ["Last-Event-ID: x"],
  ["Idempotency-Key: k"],
  ["Accept: text/event-stream"],
];

describe("a session of another user", () => {
  const routes = OPERATIONS.filter(({ template }) => template.startsWith("/v1/sessions/{id}"));

  it.each(routes.map(({ operation, method, template }) => [operation.operationId, method, template] as const))(
    "%s sends a stranger the same bytes for an existing session as for a missing one, and changes nothing",
    async (operation, method, template) => {
      const before = await at.ok("GET", `/v1/sessions/${SECRET}/transcript`, { token: alice });
      for (const condition of CONDITIONS) {
        const [theirs, nobodys] = await Promise.all(
          [SECRET, "nobodys-secret-session"].map(async (id) => {
            const path = template.replace("{id}", id).replace(/\{\w+\}/g, "r1");
            const received = await everything(mallory, `${method} ${path} HTTP/1.1`, condition, BODIES[operation]);
            return received.replaceAll(id, "ID");
          }),
        );
        expect(parseReply(theirs ?? "")?.status, condition.join()).toBe(404);
        expect(theirs, condition.join()).toBe(nobodys);
        for (const canary of [...CANARIES, "alice"]) expect(theirs).not.toContain(canary);
      }
      const after = await at.ok("GET", `/v1/sessions/${SECRET}/transcript`, { token: alice });
      expect(after.json.entries).toEqual(before.json.entries);
    },
  );

  it("no list, error, report or event that a user's requests cause mentions another user's session", async () => {
    for (const path of ["/v1/me", "/v1/sessions", "/v1/sessions?purpose=canary-purpose", "/v1/sessions?limit=200"]) {
      const { text } = await at.ok("GET", path, { token: mallory });
      for (const canary of [...CANARIES, SECRET, "alice"]) expect(text, path).not.toContain(canary);
    }
    const taken = await at.ask("POST", "/v1/sessions", { token: mallory, body: { id: SECRET } });
    expect(taken.status).toBe(409);
    for (const canary of [...CANARIES, "alice"]) expect(taken.text).not.toContain(canary);
    const log = JSON.stringify([at.events, at.requests, at.signOns]);
    for (const canary of [...CANARIES, alice, mallory, at.commands.folder]) expect(log).not.toContain(canary);
  });

  it("an operator sees neither the conversations nor the tokens of users", async () => {
    const token = await at.token("root", ["admin", "use", "read"]);
    const reads = OPERATIONS.filter(({ method, template }) => method === "GET" && !template.includes("{"));
    for (const path of [...reads.map(({ template }) => template), "/v1/sessions?all=true"]) {
      const { text } = await at.ok("GET", path, { token });
      for (const canary of ["xyzzy", alice, mallory, at.commands.folder]) expect(text, path).not.toContain(canary);
    }
    for (const part of ["transcript", "events?follow=false", "requests"])
      expect((await at.ask("GET", `/v1/sessions/${SECRET}/${part}`, { token })).status, part).toBe(404);
  });
});

it("a removed member gets no more events, even on a stream that was already open", async () => {
  const id = unused("shared-for-a-while");
  await at.ok("POST", "/v1/sessions", { token: alice, body: { id, members: ["carol"] } });
  const turn = async (prompt: string) =>
    await at.ok("POST", `/v1/sessions/${id}/turns`, { token: alice, body: { prompt } });
  await turn("the first word");
  const headers = { Authorization: `Bearer ${await at.token("carol")}` };
  const stream = await fetch(`${at.door.url}/v1/sessions/${id}/events`, { headers });
  let seen = "";
  const reading = (async () => {
    for await (const chunk of stream.body ?? []) seen += Buffer.from(chunk as Uint8Array).toString("utf8");
  })();
  await eventually("the first turn", () => seen.includes("the first word"));
  await at.ok("PATCH", `/v1/sessions/${id}`, { token: alice, body: { members: [] } });
  await turn("plugh is the second word");
  const own = await at.ok("GET", `/v1/sessions/${id}/events?follow=false`, { token: alice });
  expect(own.text).toContain("plugh");
  // The second turn wakes carol's stream. The stream then ends, because carol is no longer a member.
  await reading;
  expect(seen).toContain("FLEET_SESSION_NOT_FOUND");
  expect(seen).not.toContain("plugh");
});

it("many users at once each get only their own sessions, replies and streams", async () => {
  const users = ["u1", "u2", "u3", "u4"];
  await Promise.all(
    users.map(async (user) => {
      const token = await at.token(user);
      const word = `word-of-${user}`;
      const { id } = (await at.ok("POST", "/v1/sessions", { token })).json.session;
      const texts: string[] = [];
      for (let round = 0; round < 3; round++) {
        const body = { prompt: `${word} ${round}` };
        texts.push((await at.ok("POST", `/v1/sessions/${id}/turns`, { token, body })).text);
        for (const path of [
          "/v1/me",
          "/v1/sessions",
          `/v1/sessions/${id}/transcript`,
          `/v1/sessions/${id}/events?follow=false`,
        ])
          texts.push((await at.ok("GET", path, { token })).text);
      }
      expect(texts.join()).toContain(word);
      for (const other of users) if (other !== user) expect(texts.join()).not.toContain(`word-of-${other}`);
    }),
  );
});
