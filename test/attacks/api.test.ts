import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { Strangers } from "../../src/http/door-state.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { GitHubAccounts } from "../fixtures/identity/github-accounts.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { doorEnds, type Reply, TestApi } from "../http/harness.js";

const model = await startHeldModel();
let at: TestApi;
let alice: string;

beforeAll(async () => {
  at = await TestApi.open({ env: { ...model.env }, config: { limits: { default: { connections: 2 } } } });
  alice = await at.token("alice");
});
afterAll(async () => {
  model.release();
  await at[Symbol.asyncDispose]();
  await model.close();
});

const codeOf = ({ status, json }: Reply) => `${status} ${json?.code}`;

/** Sends a request with this first line and these headers, and resolves with everything that comes back. */
async function raw(line: string, headers: readonly string[]): Promise<string> {
  const socket = connect(at.door.address.port, "127.0.0.1");
  // Do not call `end`, because an HTTP server drops the request of a client that has closed its side.
  socket.write([line, ...headers, `Authorization: Bearer ${alice}`, "Connection: close", "", ""].join("\r\n"));
  return await text(socket);
}

/** Replaces a function of the library until the returned object is disposed. */
function replaced(sessions: object, name: string, by: (...given: never[]) => unknown): Disposable {
  const own = Reflect.get(sessions, name);
  Object.defineProperty(sessions, name, { value: by, configurable: true });
  return { [Symbol.dispose]: () => Object.defineProperty(sessions, name, { value: own, configurable: true }) };
}

describe("a request with several names of its host", () => {
  it.each([
    ["a second header", "GET /v1/me HTTP/1.1", ["Host: localhost", "Host: evil.example"]],
    ["a whole URL", "GET http://evil.example/v1/me HTTP/1.1", ["Host: localhost"]],
  ])("a request is refused if %s names another host, because a proxy may use that host", async (_, line, headers) => {
    const reply = await raw(line, headers);
    expect(reply).toMatch(/^HTTP\/1\.1 403 /);
    expect(reply).not.toContain("alice");
  });

  it("a request line with a complete URL is accepted if its host is that of the Host header (RFC 9112)", async () => {
    expect(await raw("GET http://LOCALHOST:1/v1/me HTTP/1.1", ["Host: localhost:1"])).toMatch(/^HTTP\/1\.1 200 /);
  });
});

it.each([
  "?%74oken=x",
  `?x=cft%5F${"a".repeat(16)}%5Fy`,
  `/%63ft_${"a".repeat(16)}_y`,
  "?x=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln",
  `?x=gho_${"a".repeat(36)}`,
  `?x=github_pat_${"a".repeat(36)}`,
])("a URL with a token of any kind is refused, even if it is percent-encoded: %s", async (rest) => {
  const reply = await at.ask("GET", `/v1/me${rest}`, { token: alice });
  expect(codeOf(reply)).toBe("422 FLEET_USAGE_INVALID");
  expect(reply.json.detail).toContain("Revoke that token");
});

it("a body that has a field twice is refused, even if one of the two names contains an escape", async () => {
  const body = '{"purpose":"x","\\u0070urpose":"y"}';
  const reply = await at.ask("POST", "/v1/sessions", { token: alice, body });
  expect(reply.json.detail).toBe("The body has a field twice.");
});

describe("a request that runs when its token ends", () => {
  it.each(["is revoked", "expires"])("a running turn is cut and answered with 401 when its token %s", async (how) => {
    const ttl = how === "expires" ? "10s" : "1h";
    const before = at.events.length;
    const { id } = (await at.ok("POST", "/v1/sessions", { token: alice })).json.session;
    const issued = await at.fleet.tokens.issue("alice", { ttl, scopes: ["use"] });
    const word = how.replace(" ", "-");
    const running = at.ask("POST", `/v1/sessions/${id}/turns`, {
      token: issued.token,
      body: { prompt: `!hold ${word}` },
    });
    await eventually("the model", () => model.held(word) > 0);
    if (how === "is revoked") await at.fleet.tokens.revoke({ ids: [issued.id] });
    expect(codeOf(await running)).toBe("401 FLEET_TOKEN_REFUSED");
    await eventually("the end of the turn", () => model.held(word) === 0);
    expect(at.events.slice(before)).toContainEqual(expect.objectContaining({ event: "token-refused", user: "alice" }));
  });
});

it("an unread answer counts as a connection of its user until the client disconnects", async () => {
  const { id } = (await at.ok("POST", "/v1/sessions", { token: alice })).json.session;
  const large = { entries: ["x".repeat(20_000_000)] };
  const sockets: Socket[] = [];
  using _ = replaced(at.fleet.sessions, "transcript", async () => large);
  const head = `GET /v1/sessions/${id}/transcript HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${alice}\r\n\r\n`;
  for (let count = 0; count < 2; count++) {
    const socket = connect(at.door.address.port, "127.0.0.1");
    socket.pause();
    sockets.push(socket);
    socket.write(head);
    await eventually(
      "the answer",
      () => at.requests.filter(({ method }) => method.endsWith("transcript")).length > count,
    );
  }
  const refused = await at.ask("GET", "/v1/me", { token: alice });
  for (const socket of sockets) socket.destroy();
  expect(codeOf(refused)).toBe("429 FLEET_LIMIT_REACHED");
  await eventually("room", async () => (await at.ask("GET", "/v1/me", { token: alice })).status === 200);
});

it.each(["me", "sessions/ID/events"])(
  "when a client disconnects, its GET /v1/%s that waits behind a stream on the same connection ends, too",
  async (name) => {
    const { id } = (await at.ok("POST", "/v1/sessions", { token: alice })).json.session;
    const before = at.door.streams.open;
    const socket = connect(at.door.address.port, "127.0.0.1");
    const get = async (path: string) => {
      const answered = at.requests.length;
      socket.write(`GET /v1/${path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${alice}\r\n\r\n`);
      await eventually("the answer", () => at.requests.length > answered);
    };
    await get(`sessions/${id}/events`);
    await get(name.replace("ID", id));
    socket.destroy();
    await eventually("room", async () => {
      const { status, json } = await at.ask("GET", "/v1/me", { token: alice });
      return status === 200 && json.used.connections === 1;
    });
    expect(at.door.streams.open).toBe(before);
  },
);

it("unread bytes of answers count against unreadBytes, and requests get 429 until the clients disconnect", async () => {
  await using other = await TestApi.open({ env: { ...model.env } });
  const token = await other.token("alice");
  const { id } = (await other.ok("POST", "/v1/sessions", { token })).json.session;
  using _ = replaced(other.fleet.sessions, "transcript", async () => ({ entries: ["x".repeat(40_000_000)] }));
  const path = `/v1/sessions/${id}/transcript`;
  const head = `GET ${path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n\r\n`;
  const answered = () => other.requests.filter(({ method }) => method.endsWith("transcript")).length;
  const sockets: Socket[] = [];
  for (let count = 1; count <= 2; count++) {
    const socket = connect(other.door.address.port, "127.0.0.1");
    socket.pause();
    sockets.push(socket);
    socket.write(head);
    await eventually("the answer", () => answered() === count);
  }
  const refused = await other.ask("GET", "/v1/me", { token });
  for (const socket of sockets) socket.destroy();
  expect(refused).toMatchObject({ status: 429, json: { limit: "unreadBytes" } });
  await eventually("room", async () => (await other.ask("GET", "/v1/me", { token })).status === 200);
});

it("a turn's stream ends with a problem if the client reads too slowly, and the metrics count it as slow", async () => {
  const { id } = (await at.ok("POST", "/v1/sessions", { token: alice })).json.session;
  const data = { messageId: "m", deltaContent: "x".repeat(100_000) };
  const event = { type: "assistant.message_delta", timestamp: new Date().toISOString(), ephemeral: true, data };
  const before = at.door.streams;
  using _ = replaced(
    at.fleet.sessions,
    "turn",
    async (...given: [string, string, { onEvent(event: object): void }]) => {
      for (let count = 0; count < 100; count++) {
        given[2].onEvent({ id: `${count}`, ...event });
        if (count === 0) await eventually("the stream", () => at.door.streams.open > before.open);
      }
      await new Promise(setImmediate);
      return { turn: "1", text: "done", usage: {} };
    },
  );
  const options = { token: alice, body: { prompt: "hello" }, headers: { Accept: "text/event-stream" } };
  const { text: stream } = await at.ok("POST", `/v1/sessions/${id}/turns`, options);
  const last = stream.slice(stream.lastIndexOf("event: "));
  expect(last).toMatch(/^event: problem\ndata: .*"code":"FLEET_LIMIT_REACHED"/);
  await eventually("the end of the stream", () => at.door.streams.open === before.open);
  expect(at.door.streams.slow).toBe(before.slow + 1);
});

it("a user's connections to the front door and to the API count against the same limit", async () => {
  await using few = await TestApi.open({ env: { ...model.env }, config: { limits: { default: { connections: 1 } } } });
  await using door = await few.fleet.doors.open({ listen: "127.0.0.1:0" });
  const token = await few.token("alice");
  const client = await RawClient.as(door.url, token);
  expect(await few.ask("GET", "/v1/me", { token })).toMatchObject({ status: 429, json: { limit: "connections" } });
  expect((await few.ok("GET", "/v1/me", { token: await few.token("bob") })).json.used.connections).toBe(1);
  client.socket.destroy();
  await eventually("room", async () => (await few.ask("GET", "/v1/me", { token })).status === 200);
  const { id } = (await few.ok("POST", "/v1/sessions", { token })).json.session;
  const turn = few.ask("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "!hold both" } });
  await eventually("the model", () => model.held("both") > 0);
  await expect(RawClient.as(door.url, token)).rejects.toThrow(/limit|connections/i);
  model.release("both");
  expect((await turn).status).toBe(200);
});

it("a user's connection counts as a stranger again only after all its running requests are answered", async () => {
  const strangers = new Strangers(1);
  const sockets = await doorEnds(at.door, 3);
  const [first, second, third] = sockets as [Socket, Socket, Socket];
  const destroyed = () => sockets.map((socket) => socket.destroyed);
  strangers.arrived(first);
  const requests = [strangers.hold(first, "requests"), strangers.hold(first, "requests")];
  requests[0]?.[Symbol.dispose]();
  strangers.arrived(second);
  expect(destroyed()).toEqual([false, false, false]);
  second.destroy();
  await once(second, "close");
  requests[1]?.[Symbol.dispose]();
  strangers.arrived(third);
  expect(destroyed()).toEqual([true, true, false]);
  third.destroy();
});

it("an answer with FLEET_STATE_UNWRITABLE contains no path of the host, but the log contains the path", async () => {
  const error = new FleetError("FLEET_STATE_UNWRITABLE", 'The state in "/srv/secret" cannot be written.', {
    suggestions: ["df -h /srv/secret"],
  });
  using _ = replaced(at.fleet.sessions, "list", async () => Promise.reject(error));
  const reply = await at.ask("GET", "/v1/sessions", { token: alice });
  expect(codeOf(reply)).toBe("503 FLEET_STATE_UNWRITABLE");
  expect(reply.text).not.toContain("secret");
  expect(reply.json.detail).toMatch(/The log of serve has the reason, with the id of the request\.$/);
  const logged = at.events.find(({ event, detail }) => event === "failed" && detail?.includes(reply.json.requestId));
  expect(logged?.detail).toContain("/srv/secret");
});

it("a user's session lists are made one at a time, even if one fails, and other users do not wait", async () => {
  const begun: string[] = [];
  const waiting: (() => void)[] = [];
  using _ = replaced(at.fleet.sessions, "list", async ({ user }: { user: string }) => {
    begun.push(user);
    await new Promise<void>((resolve) => waiting.push(resolve));
    if (begun.length === 2) throw new Error("failed");
    return [];
  });
  const bob = await at.token("bob");
  const [first, second, other] = [alice, alice, bob].map(
    async (token) => await at.ask("GET", "/v1/sessions", { token }),
  );
  await eventually("the lists", () => begun.length === 2);
  expect(begun.toSorted()).toEqual(["alice", "bob"]);
  for (const go of waiting.splice(0)) go();
  expect([(await first)?.status, (await other)?.status]).toEqual([500, 500]);
  await eventually("the second list", () => begun.length === 3);
  for (const go of waiting.splice(0)) go();
  expect((await second)?.status).toBe(200);
});

it("a turn gets the caller's GitHub token only in a session that the caller owns", async () => {
  await using github = await GitHubAccounts.open();
  const identity = { github: { api: github.url } };
  await using own = await TestApi.open({ config: { provider: null, identity } });
  github.accounts.set("gho_ofAlice", { login: "alice" });
  github.accounts.set("gho_ofBob", { login: "bob" });
  await own.fleet.sessions.create({ user: "alice", sessionId: "shared", members: ["bob"] });
  const given: unknown[] = [];
  using _ = replaced(own.fleet.sessions, "turn", async (...[, , { user, session }]: [string, string, Given]) => {
    given.push([user, session]);
    return { turn: "1", text: "", usage: null, outcome: "completed" };
  });
  for (const token of ["gho_ofAlice", "gho_ofBob"])
    await own.ok("POST", "/v1/sessions/shared/turns", { token, body: { prompt: "hello" } });
  expect(given).toEqual([
    ["alice", { gitHubToken: "gho_ofAlice" }],
    ["bob", undefined],
  ]);
});

interface Given {
  user: string;
  session?: object;
}
