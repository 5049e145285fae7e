import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { text } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ROUTES } from "../../src/http/app.js";
import { Strangers } from "../../src/http/door-state.js";
import { issueHostToken } from "../../src/identity/tokens.js";
import { openStore } from "../../src/store/store.js";
import { rawReply } from "../fixtures/api/raw-reply.js";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { doorEnds, type Reply, TestApi } from "../http/harness.js";

const PAGE = "https://app.example";
let at: TestApi;
let alice: string;
let id: string;

beforeAll(async () => {
  at = await TestApi.open({ config: { http: { origins: [PAGE] }, serve: { maxFrame: "64kb" } } });
  alice = await at.token("alice");
  id = (await at.ok("POST", "/v1/sessions", { token: alice })).json.session.id;
});
afterAll(async () => await at[Symbol.asyncDispose]());

const codeOf = ({ status, json }: Reply) => `${status} ${json?.code}`;

/** Sends these bytes, and resolves with everything that comes back. */
async function raw(bytes: string | Buffer): Promise<string> {
  const socket = connect(at.door.address.port, "127.0.0.1");
  socket.end(bytes);
  return await text(socket);
}

describe("the hosts and origins of requests", () => {
  it.each(["evil.example", "evil.example:80", "localhost.evil.example", "app.example.evil.example", "a b", "[::1", ""])(
    "a request for the host %j is refused, so that no web page reaches this address through its own domain name",
    async (host) => {
      const reply = await raw(
        `GET /v1/me HTTP/1.1\r\nHost: ${host}\r\nAuthorization: Bearer ${alice}\r\nConnection: close\r\n\r\n`,
      );
      expect(reply).toMatch(/^HTTP\/1\.1 40[03] /);
      expect(reply).not.toContain("alice");
    },
  );

  it.each(["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:4380", "192.0.2.7", "app.example", "app.example:8443"])(
    "a request for the host %j is answered",
    async (host) => {
      expect((await at.ask("GET", "/v1/me", { token: alice, headers: { Host: host } })).status).toBe(200);
    },
  );

  it.each(["https://evil.example", "http://app.example", "https://app.example.evil.example", "null", "file://", ""])(
    "a request from a web page at %j is refused with every method",
    async (origin) => {
      const headers = { Origin: origin };
      for (const method of ["GET", "POST", "OPTIONS"]) {
        const reply = await at.ask(method, "/v1/sessions", { token: alice, headers });
        expect(codeOf(reply)).toBe("403 FLEET_METHOD_DENIED");
        expect(reply.headers["access-control-allow-origin"]).toBeUndefined();
      }
    },
  );

  it("pages at http.origins and pages at the API's own address may send requests and read the answers", async () => {
    for (const origin of [PAGE, at.door.url]) {
      const asked = await at.ask("OPTIONS", "/v1/sessions", { headers: { Origin: origin } });
      expect(asked.status).toBe(204);
      expect(asked.headers).toMatchObject({
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "POST, GET",
        "access-control-allow-headers":
          "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, X-Request-Id",
        vary: "Origin",
      });
      expect(asked.headers["access-control-allow-credentials"]).toBeUndefined();
      const reply = await at.ok("GET", "/v1/me", { token: alice, headers: { Origin: origin } });
      expect(reply.headers).toMatchObject({
        "access-control-allow-origin": origin,
        "access-control-expose-headers": expect.stringContaining("Retry-After"),
      });
    }
  });
});

describe("tokens", () => {
  it("every request without a valid token gets the same answer, and the log has the reason", async () => {
    const own = openStore("file", at.commands.root);
    const { token: hosts } = await issueHostToken(own, "other", "this");
    const revoked = await at.fleet.tokens.issue("alice");
    await at.fleet.tokens.revoke({ ids: [revoked.id] });
    const wrong = [
      undefined,
      revoked.token,
      `${alice}x`,
      alice.slice(0, -1),
      hosts,
      "eyJhbGciOiJub25lIn0.e30.",
      "ghp_x",
      "x",
    ];
    const bodies = new Set<string>();
    for (const token of wrong) {
      const reply = await at.ask("GET", "/v1/me", { token });
      expect(reply.status).toBe(401);
      expect(reply.headers["www-authenticate"]).toBe('Bearer realm="copilotfleet"');
      bodies.add(JSON.stringify({ ...reply.json, requestId: "" }));
    }
    expect(bodies.size).toBe(1);
    expect(at.events).toContainEqual(
      expect.objectContaining({ event: "token-refused", detail: "It is the token of another host." }),
    );
  });

  it("a request without a valid token is answered before its body arrives", async () => {
    const head = ["POST /v1/sessions HTTP/1.1", "Host: localhost", "Content-Type: application/json"];
    const bytes = Buffer.from([...head, "Content-Length: 1000", "", ""].join("\r\n"));
    expect(await rawReply(at.door.address.port, bytes)).toMatch(/^HTTP\/1\.1 401 /);
  });

  it("a token is accepted only as the single bearer token in the header Authorization", async () => {
    const headers = [
      { Cookie: `token=${alice}` },
      { Authorization: `Basic ${Buffer.from(`alice:${alice}`).toString("base64")}` },
      { Authorization: alice },
      { Authorization: `Bearer ${alice} ${alice}` },
      { "X-Api-Key": alice },
    ];
    for (const each of headers) expect((await at.ask("GET", "/v1/me", { headers: each })).status).toBe(401);
  });

  it.each(["?access_token=x", "?token=x", "?a=1&Token=x", `?x=cft_${"a".repeat(16)}_y`])(
    "a URL with a token is refused, even if the header has a valid token: %s",
    async (query) => {
      const reply = await at.ask("GET", `/v1/me${query}`, { token: alice });
      expect(codeOf(reply)).toBe("422 FLEET_USAGE_INVALID");
      expect(reply.json.detail).toContain("Revoke that token");
    },
  );

  it("every route answers a wrong token with 401, so a stranger does not learn the route's scope", async () => {
    for (const { method, path } of ROUTES) {
      const body = method === "GET" ? {} : { body: "x".repeat(60_000) };
      const reply = await at.ask(method, path.replace("{id}", id), { token: "wrong", ...body });
      expect(codeOf(reply)).toBe("401 FLEET_TOKEN_REFUSED");
    }
  });
});

describe("paths, queries and bodies", () => {
  it.each([
    "..%2f..%2fetc",
    "%2e%2e",
    "a%2fb",
    "a%5cb",
    "%00",
    "%0a",
    "%e2%80%ae",
    "__proto__",
    "constructor",
    "a".repeat(300),
    "-x",
    "%20",
    "%ff",
  ])("a request for the session %s is refused as not found or as an invalid id", async (name) => {
    for (const path of [`/v1/sessions/${name}`, `/v1/sessions/${name}/transcript`]) {
      const reply = await at.ask("GET", path, { token: alice });
      expect([404, 422]).toContain(reply.status);
      expect(reply.json.code).toMatch(/^FLEET_(SESSION_NOT_FOUND|SESSION_ID_INVALID|METHOD_UNKNOWN|USAGE_INVALID)$/);
    }
  });

  it.each([
    "/v1/sessions/%2e%2e/me",
    "/v1/sessions/../me",
    "/v1/sessions/.%2E/me",
    "/v1/./me",
    "/v1/%2e/me",
    "/v1/me/x/..",
  ])("the path %s is refused, although a URL parser turns it into /v1/me", async (path) => {
    expect(new URL(path, "http://localhost").pathname).toMatch(/^\/v1\/me\/?$/);
    expect(codeOf(await at.ask("GET", path, { token: alice }))).toBe("422 FLEET_USAGE_INVALID");
  });

  it.each([
    "?limit=0",
    "?limit=201",
    "?limit=1e2",
    "?limit=-1",
    "?limit=",
    "?limit=1&limit=2",
    "?state=idel",
    "?cursor=x",
    "?cursor=W10",
    "?user=",
    "?all=yes",
    "?purpose=%0a",
  ])("GET /v1/sessions refuses the query %s", async (query) => {
    const token = await at.token("root", ["admin"]);
    expect(codeOf(await at.ask("GET", `/v1/sessions${query}`, { token }))).toBe("422 FLEET_USAGE_INVALID");
  });

  it.each([
    ["not JSON", "{"],
    ["a list", "[]"],
    ["a text", '"hello"'],
    ["null", "null"],
    ["an unknown field", '{"promt":"x"}'],
    ["a field twice", '{"prompt":"x","prompt":"y"}'],
    ["the wrong type", '{"prompt":5}'],
    ["a blank prompt", '{"prompt":" \\n "}'],
    ["no prompt", "{}"],
    ["a prototype", '{"prompt":"x","__proto__":{"timeout":"1s"}}'],
    ["a timeout that is not a duration", '{"prompt":"x","timeout":"5 parsecs"}'],
    ["a timeout of more than an hour", '{"prompt":"x","timeout":"61m"}'],
    ["bytes that are not UTF-8", Buffer.from([0x7b, 0xff, 0x7d])],
    ["deep nesting", `{"prompt":${"[".repeat(5_000)}`],
    ["many values", `{"prompt":[${"{},".repeat(20_000)}{}]}`],
    ["only spaces", "   "],
  ])("a turn with this body is refused and does not begin: %s", async (_, body) => {
    const reply = await at.ask("POST", `/v1/sessions/${id}/turns`, { token: alice, body });
    expect(reply.status, reply.text).toBe(422);
    expect(reply.json).toMatchObject({ title: expect.any(String), detail: expect.any(String), retryable: false });
    expect((await at.ok("GET", `/v1/sessions/${id}/transcript`, { token: alice })).json.entries).toEqual([]);
  });

  it("a body is refused if it is compressed or its Content-Type is not JSON in UTF-8", async () => {
    const path = `/v1/sessions/${id}/turns`;
    const headers = [
      { "Content-Type": "text/plain" },
      { "Content-Type": "application/json; charset=utf-16" },
      { "Content-Type": "application/x-www-form-urlencoded" },
    ];
    for (const each of headers) {
      const reply = await at.ask("POST", path, { token: alice, body: { prompt: "x" }, headers: each });
      expect(codeOf(reply)).toBe("422 FLEET_USAGE_INVALID");
    }
    const packed = { body: gzipSync('{"prompt":"x"}'), headers: { "Content-Encoding": "gzip" } };
    expect((await at.ask("POST", path, { token: alice, ...packed })).status).toBe(422);
  });

  it("a body over the limit gets 413, both with a Content-Length header and in chunks", async () => {
    const body = { prompt: "x".repeat(70_000) };
    const reply = await at.ask("POST", `/v1/sessions/${id}/turns`, { token: alice, body });
    expect(codeOf(reply)).toBe("413 FLEET_CONTENT_TOO_LARGE");
    const piece = `${(16_384).toString(16)}\r\n${"x".repeat(16_384)}\r\n`;
    const head = `POST /v1/sessions/${id}/turns HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${alice}\r\n`;
    const sent = `${head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n${piece.repeat(6)}0\r\n\r\n`;
    expect(await raw(sent)).toMatch(/^HTTP\/1\.1 413 /);
    const small = await at.ask("POST", "/v1/sessions", { token: alice, body: { purpose: "x".repeat(66_000) } });
    expect(small.status).toBe(413);
  });

  it("an unknown path gets 404, and an unknown method gets 405 with the methods of the path", async () => {
    expect(codeOf(await at.ask("GET", "/v1/nothing", { token: alice }))).toBe("404 FLEET_METHOD_UNKNOWN");
    const reply = await at.ask("PUT", "/v1/sessions", { token: alice });
    expect({ code: codeOf(reply), allow: reply.headers.allow }).toEqual({
      code: "405 FLEET_METHOD_UNKNOWN",
      allow: "POST, GET",
    });
    expect((await at.ask("HEAD", "/v1/me", { token: alice })).status).toBe(200);
    expect((await at.ask("GET", "/metrics", { token: alice })).status).toBe(404);
  });

  it.each([
    ["a line without a path", "GET\r\n\r\n", 400],
    ["bytes of another protocol", "\0\0\0\0", 400],
    ["another version of HTTP", "GET / HTTP/9.9\r\n\r\n", 400],
    ["a head of 40 kB", `GET / HTTP/1.1\r\nA: ${"x".repeat(40_000)}\r\n\r\n`, 431],
    [
      "a body with a wrong length of a chunk",
      "POST /v1/sessions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
      400,
    ],
  ])("malformed HTTP is answered with a problem document, and the door keeps serving: %s", async (_, bytes, status) => {
    const reply = await raw(bytes);
    expect(reply).toContain(`HTTP/1.1 ${status} `);
    const [head = "", body = ""] = reply.slice(reply.lastIndexOf("HTTP/1.1")).split("\r\n\r\n");
    expect(head).toContain("Content-Type: application/problem+json");
    expect(head).toContain("X-Content-Type-Options: nosniff");
    expect(JSON.parse(body)).toMatchObject({
      status,
      code: expect.stringMatching(/^FLEET_/),
      requestId: expect.any(String),
    });
    expect((await at.ok("GET", "/v1/me", { token: alice })).status).toBe(200);
  });

  it("a request without a Host header is refused in HTTP/1.1 and HTTP/1.0", async () => {
    for (const version of ["1.1", "1.0"]) {
      const reply = await raw(
        `GET /v1/me HTTP/${version}\r\nAuthorization: Bearer ${alice}\r\nConnection: close\r\n\r\n`,
      );
      expect(reply).toMatch(/^HTTP\/1\.1 400 .*FLEET_USAGE_INVALID/s);
    }
  });
});

describe("every answer", () => {
  it("every answer has an id, forbids caching and type sniffing, and never shows a stack trace", async () => {
    const replies = [
      await at.ok("GET", "/v1/me", { token: alice, headers: { "X-Request-Id": "mine-1" } }),
      await at.ask("GET", "/v1/me"),
      await at.ask("GET", "/nothing", { headers: { "X-Request-Id": "bad id\t" } }),
      await at.ask("GET", "/v1/me", { headers: { Host: "evil.example" } }),
      await at.ok("GET", "/openapi.json"),
      await at.ok("GET", "/healthz"),
    ];
    for (const { headers, text: body } of replies) {
      expect(headers).toMatchObject({
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-request-id": expect.stringMatching(/^[A-Za-z0-9_-]+$/),
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
      });
      expect(headers["x-powered-by"]).toBeUndefined();
      expect(body).not.toMatch(/\bat .*\.[cm]?[jt]s:\d+/);
    }
    expect(replies[0]?.headers["x-request-id"]).toBe("mine-1");
  });

  it("the answer to an unexpected error has no details; the log has them with the id of the request", async () => {
    const { fleet } = at;
    const token = await at.token("alice");
    const { list } = fleet.sessions;
    Object.defineProperty(fleet.sessions, "list", {
      value: () => Promise.reject(new Error("secret")),
      configurable: true,
    });
    try {
      const reply = await at.ask("GET", "/v1/sessions", { token });
      expect(codeOf(reply)).toBe("500 FLEET_INTERNAL");
      expect(reply.text).not.toContain("secret");
      const logged = at.events.find(
        ({ event, detail }) => event === "failed" && detail?.includes(reply.json.requestId),
      );
      expect(logged?.detail).toContain("Error: secret");
    } finally {
      Object.defineProperty(fleet.sessions, "list", { value: list, configurable: true });
    }
  });
});

describe("the limits of one user", () => {
  it("a user with too many requests at once gets 429 with Retry-After, and other users are served", async () => {
    await using model = await startHeldModel();
    await using few = await TestApi.open({
      env: { ...model.env },
      config: { limits: { default: { connections: 1 } } },
    });
    const token = await few.token("alice");
    const own = (await few.ok("POST", "/v1/sessions", { token })).json.session.id;
    const turn = few.ask("POST", `/v1/sessions/${own}/turns`, { token, body: { prompt: "!hold on" } });
    await eventually("the model", () => model.held() > 0);
    const refused = await few.ask("GET", "/v1/me", { token });
    expect(refused.status).toBe(429);
    expect(refused.json).toMatchObject({ code: "FLEET_LIMIT_REACHED", limit: "connections", retryable: true });
    expect(refused.headers["retry-after"]).toMatch(/^\d+$/);
    expect((await few.ok("GET", "/v1/me", { token: await few.token("bob") })).status).toBe(200);
    model.release();
    expect((await turn).status).toBe(200);
    expect((await few.ok("GET", "/v1/me", { token })).status).toBe(200);
  });

  it("a new session over the user's limit is refused with 429", async () => {
    await using few = await TestApi.open({ config: { limits: { default: { sessions: 1 } } } });
    const token = await few.token("alice");
    await few.ok("POST", "/v1/sessions", { token });
    expect(codeOf(await few.ask("POST", "/v1/sessions", { token }))).toBe("429 FLEET_LIMIT_REACHED");
  });
});

it("a client with a valid token is served even if strangers hold 2,100 connections open", async () => {
  const sockets = Array.from({ length: 2_100 }, () =>
    connect(at.door.address.port, "127.0.0.1").on("error", () => undefined),
  );
  try {
    await Promise.all(sockets.map(async (socket) => await once(socket, "connect").catch(() => "closed")));
    expect((await at.ok("GET", "/v1/me", { token: alice })).json.user).toBe("alice");
  } finally {
    for (const socket of sockets) socket.destroy();
  }
});

it("if there are too many strangers, a new one closes the oldest whose token is not being looked up", async () => {
  const strangers = new Strangers(2);
  const sockets = await doorEnds(at.door, 3);
  const [first, second, third] = sockets as [Socket, Socket, Socket];
  strangers.arrived(first);
  strangers.arrived(second);
  using _ = strangers.hold(first, "lookups");
  strangers.arrived(third);
  expect(sockets.map(({ destroyed }) => destroyed)).toEqual([false, true, false]);
  for (const socket of sockets) socket.destroy();
});
