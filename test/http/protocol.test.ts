import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseReply, rawReply } from "../fixtures/api/raw-reply.js";
import { eventually } from "../fixtures/eventually.js";
import { TestApi } from "./harness.js";

let at: TestApi;
let alice: string;
beforeAll(async () => {
  at = await TestApi.open();
  alice = await at.token("alice");
});
afterAll(async () => await at[Symbol.asyncDispose]());

/** Sends a request as alice, and returns everything that comes back. */
async function sent(line: string, headers: readonly string[] = [], body = ""): Promise<string> {
  const head = [line, "Host: localhost", `Authorization: Bearer ${alice}`, ...headers].join("\r\n");
  return await rawReply(at.door.address.port, Buffer.from(`${head}\r\n\r\n${body}`));
}

const CLOSE = "Connection: close";
const JSON_TYPE = "Content-Type: application/json";
const HIDDEN = `GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ALICE\r\n\r\n`;
const answers = (received: string) => received.match(/HTTP\/1\.1 \d{3} /g) ?? [];

describe("request smuggling: a request that two programs could read as different requests", () => {
  it.each([
    ["two lengths", ["Content-Length: 2", "Content-Length: 60"], "{}"],
    ["a length and chunks", ["Content-Length: 5", "Transfer-Encoding: chunked"], "0\r\n\r\n"],
    ["chunks under another name", ["Transfer-Encoding: xchunked"], "0\r\n\r\n"],
    ["chunks before another encoding", ["Transfer-Encoding: chunked, gzip"], "0\r\n\r\n"],
    ["a space before the colon", ["Transfer-Encoding : chunked"], "0\r\n\r\n"],
    ["a folded header", ["X-A: b\r\n Transfer-Encoding: chunked"], ""],
    ["a line feed alone", ["X-A: b\nContent-Length: 60"], ""],
    ["a length with a sign", ["Content-Length: +2"], "{}"],
  ])("an ambiguous request (%s) gets 400, and a request hidden behind it gets no answer", async (_, headers, body) => {
    const received = await sent(
      "POST /v1/sessions HTTP/1.1",
      [JSON_TYPE, ...headers],
      body + HIDDEN.replace("ALICE", alice),
    );
    expect(answers(received)).toEqual(["HTTP/1.1 400 "]);
  });
});

it("pipelined requests are each answered once, in their order", async () => {
  const first = `GET /v1/me HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: first\r\n\r\n`;
  const received = await rawReply(
    at.door.address.port,
    Buffer.from(first + first.replace("first", "second") + first.replace("first", `third\r\n${CLOSE}`)),
  );
  expect(received.match(/x-request-id: \w+/gi)?.map((each) => each.slice(14))).toEqual(["first", "second", "third"]);
});

it("a request with HTTP/1.0, an upgrade, an unknown expectation or a range is answered like a plain one", async () => {
  for (const headers of [
    ["Upgrade: websocket", "Connection: Upgrade, close", "Sec-WebSocket-Key: x"],
    ["Upgrade: h2c", "HTTP2-Settings: AAMAAABk", CLOSE],
    ["Expect: the-impossible", CLOSE],
    ["Range: bytes=0-3", CLOSE],
  ])
    expect(parseReply(await sent("GET /v1/me HTTP/1.1", headers)), headers[0]).toMatchObject({
      status: 200,
      json: { user: "alice" },
    });
  expect(parseReply(await sent("GET /v1/me HTTP/1.0"))?.json.user).toBe("alice");
});

it("the API sends 100 Continue to a client that expects it, and reads a body in chunks to its end", async () => {
  const socket = connect(at.door.address.port, "127.0.0.1");
  const head = ["POST /v1/sessions HTTP/1.1", "Host: localhost", `Authorization: Bearer ${alice}`, JSON_TYPE, CLOSE];
  let received = "";
  socket.setEncoding("utf8").on("data", (text: string) => (received += text));
  socket.write([...head, "Transfer-Encoding: chunked", "Expect: 100-continue", "", ""].join("\r\n"));
  await eventually("the request for the body", () => received === "HTTP/1.1 100 Continue\r\n\r\n");
  for (const piece of ['{"purp', 'ose":"pie', 'ces"}']) socket.write(`${piece.length.toString(16)}\r\n${piece}\r\n`);
  socket.write("0\r\n\r\n");
  await once(socket, "close");
  expect(parseReply(received)).toMatchObject({ status: 201, json: { session: { purpose: "pieces" } } });
});

it("answers to TRACE and CONNECT do not contain the token, and an answer to HEAD has no body", async () => {
  for (const line of ["TRACE /v1/me HTTP/1.1", "CONNECT evil.example:443 HTTP/1.1"]) {
    const received = await sent(line, [CLOSE]);
    expect(received).not.toMatch(/^HTTP\/1\.1 2/);
    expect(received).not.toContain(alice);
  }
  const head = await sent("HEAD /v1/me HTTP/1.1", [CLOSE]);
  expect(head).toMatch(/^HTTP\/1\.1 200 /);
  expect(head.split("\r\n\r\n")[1]).toBe("");
});

it("a method, host or address forged in proxy headers has no effect, and is neither returned nor logged", async () => {
  const forged = ["X-HTTP-Method-Override: DELETE", "X-Forwarded-Host: evil.example", "X-Forwarded-For: 203.0.113.9"];
  const received = await sent("GET /v1/me HTTP/1.1", [...forged, "Forwarded: host=evil.example", CLOSE]);
  expect(parseReply(received)?.status).toBe(200);
  expect(received).not.toContain("evil.example");
  expect(JSON.stringify(at.events)).not.toContain("203.0.113.9");
});

it("line breaks and control characters from a client reach neither the log nor the headers of an answer", async () => {
  for (const path of ["/v1/sessions/a%0d%0aSet-Cookie:%20x=1", "/v1/%1b[31mred", "/v1/sessions/%e2%80%aeevil"]) {
    const reply = await at.ask("GET", path, { token: alice, headers: { "X-Request-Id": "a%0ab" } });
    expect([404, 422]).toContain(reply.status);
    expect(reply.headers["set-cookie"]).toBeUndefined();
    expect(reply.text).not.toMatch(/[\p{Cc}\u202e]/u);
    expect(reply.headers["x-request-id"]).toMatch(/^[0-9a-f-]{36}$/);
  }
  expect(JSON.stringify(at.events)).not.toMatch(/Set-Cookie|red/);
});

it("a body or a query with __proto__ or constructor is refused, and does not change Object.prototype", async () => {
  const bodies = [
    '{"__proto__":{"ephemeral":true}}',
    '{"constructor":{"prototype":{"a":1}}}',
    '{"\\u005f_proto__":{}}',
  ];
  for (const body of bodies) expect((await at.ask("POST", "/v1/sessions", { token: alice, body })).status).toBe(422);
  for (const query of ["__proto__=x", "constructor=x", "__proto__[a]=x"])
    expect((await at.ask("GET", `/v1/sessions?${query}`, { token: alice })).status).toBe(422);
  expect(Object.keys(Object.prototype)).toEqual([]);
});
