import { EventEmitter, once } from "node:events";
import { mkdtempSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, expect, it } from "vitest";
import type { RemoteProvider } from "../../src/config/schema.js";
import { ModelGateway } from "../../src/providers/gateway/gateway.js";
import { ProviderKey } from "../../src/providers/provider-key.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const KEY = "sk-canary";
const folder = mkdtempSync(join(tmpdir(), "fleet-gateway-"));
const opened: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
});
afterAll(async () => await removeFolder(folder));

/** Starts a model service. `answer` gets each request when its body has arrived. */
async function service(answer: (request: IncomingMessage, response: ServerResponse, body: string) => void) {
  const server: Server = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (piece) => {
      body += piece;
    });
    request.once("end", () => answer(request, response, body));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const sockets = new Set<Socket>();
  server.on("connection", (socket) => sockets.add(socket));
  opened.push({
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, sockets };
}

interface GatewayOptions extends Partial<Pick<RemoteProvider, "type">> {
  key?: ProviderKey;
  silenceMs?: number;
}

/** Starts a gateway in front of the service, with a session `one`. */
async function gatewayTo(baseUrl: string, { type = "openai", key, silenceMs }: GatewayOptions = {}) {
  const source = { apiKey: { from: "env", name: "KEY" } as const, bearer: false };
  const provider = { type, baseUrl, wireApi: "completions", ...source } as const;
  const envKey = new ProviderKey({ from: "env", name: "KEY" }, { KEY });
  const gateway = await ModelGateway.start(provider, key ?? envKey, {}, { silenceMs });
  opened.push({ [Symbol.asyncDispose]: async () => await gateway.close() });
  const session = gateway.providerFor("one");
  const ask = (path: string, init: RequestInit = {}) =>
    fetch(`${session.baseUrl}${path}`, {
      method: "POST",
      body: "{}",
      ...init,
      headers: { authorization: `Bearer ${session.apiKey}`, ...init.headers },
    });
  return { gateway, session, ask };
}

it("the model gateway replaces all credentials with the provider's key, and drops headers that the other side does not need", async () => {
  let seen: { url: string | undefined; headers: IncomingMessage["headers"]; body: string } | undefined;
  const model = await service(({ url, headers }, response, body) => {
    seen = { url, headers, body };
    response.writeHead(202, {
      "x-request-id": "r1",
      "retry-after": "7",
      "set-cookie": "a=b",
      connection: "close",
      "keep-alive": "timeout=5",
    });
    response.end("short and stout");
  });
  const { ask, session } = await gatewayTo(`${model.url}/v1`);
  const answer = await ask("/chat/completions", {
    body: '{"model":"m"}',
    headers: { "x-initiator": "user", "x-api-key": "other", "api-key": "other" },
  });
  expect(answer.status).toBe(202);
  expect(answer.headers.get("retry-after")).toBe("7");
  expect(answer.headers.get("x-request-id")).toBe("r1");
  expect(answer.headers.get("set-cookie")).toBeNull();
  expect(await answer.text()).toBe("short and stout");
  expect(seen).toMatchObject({ url: "/v1/chat/completions", body: '{"model":"m"}' });
  expect(seen?.headers).toMatchObject({ authorization: `Bearer ${KEY}`, "x-initiator": "user" });
  expect(seen?.headers.host).toBe(new URL(model.url).host);
  expect(seen?.headers).not.toHaveProperty("x-api-key");
  expect(seen?.headers).not.toHaveProperty("api-key");
  expect(JSON.stringify(seen)).not.toContain(session.apiKey);
});

it.each([
  ["openai", "/v1/chat/completions", "authorization", `Bearer ${KEY}`],
  ["azure", "/v1/openai/v1/responses", "api-key", KEY],
  ["anthropic", "/v1/v1/messages", "x-api-key", KEY],
] as const)(
  "the model gateway puts the key of a provider of the type %s into the header of that type's format",
  async (type, path, header, value) => {
    const model = await service((request, response) => response.end(String(request.headers[header])));
    const { gateway } = await gatewayTo(`${model.url}/v1`, { type });
    const { baseUrl, apiKey } = gateway.providerFor("two");
    const given = { [header]: header === "authorization" ? `Bearer ${apiKey}` : `${apiKey}` };
    const url = `${new URL(baseUrl).origin}${path}`;
    expect(await (await fetch(url, { method: "POST", body: "{}", headers: given })).text()).toBe(value);
  },
);

it("the model gateway refuses unknown and revoked tokens with an error in the provider's wire format", async () => {
  const model = await service((_, response) => response.end("reached"));
  const { gateway, ask } = await gatewayTo(`${model.url}/v1`);
  for (const authorization of ["", "Bearer ", "Bearer wrong", `Bearer ${KEY}`]) {
    const answer = await ask("/chat/completions", { headers: { authorization } });
    expect(answer.status).toBe(424);
    expect(await answer.json()).toMatchObject({ error: { code: "invalid_api_key", type: "authentication_error" } });
  }
  expect(await (await ask("/chat/completions")).text()).toBe("reached");
  gateway.forget("one");
  expect((await ask("/chat/completions")).status).toBe(424);
  const anthropic = await gatewayTo(model.url, { type: "anthropic" });
  const answer = await fetch(`${anthropic.session.baseUrl}/v1/messages`, {
    method: "POST",
    headers: { "x-api-key": "a" },
  });
  expect(await answer.json()).toMatchObject({ type: "error", error: { type: "authentication_error" } });
});

it.each([
  ["POST", "/v1/files"],
  ["POST", "/v1"],
  ["POST", "/other/chat/completions"],
  ["POST", "/v1/../admin/chat/completions"],
  ["POST", "/v1/%2e%2e/admin/chat/completions"],
  ["POST", "//evil/v1/chat/completions"],
  ["POST", "/v1/x/chat/completions"],
  ["POST", "http://evil.example/v1/chat/completions"],
  ["GET", "/v1/chat/completions"],
  ["DELETE", "/v1/models"],
])("the model gateway refuses %s %s, and does not pass it on", async (method, path) => {
  const model = await service((_, response) => response.end("reached"));
  const { session } = await gatewayTo(`${model.url}/v1`);
  const { port } = new URL(session.baseUrl);
  const status = await new Promise((resolve, reject) => {
    // Use `request`, because `fetch` would resolve the dots.
    const headers = { authorization: `Bearer ${session.apiKey}` };
    const sent = request({ port, host: "127.0.0.1", method, path, headers }, (answer) => resolve(answer.statusCode));
    sent.once("error", reject).end();
  });
  expect(status).toBe(422);
});

it("the model gateway adds the query of provider.baseUrl, which servers do not get", async () => {
  const model = await service(({ url }, response) => response.end(url));
  const { session, ask } = await gatewayTo(`${model.url}/v1/?code=canary`);
  expect(session.baseUrl).not.toContain("canary");
  expect(await (await ask("/chat/completions")).text()).toBe("/v1/chat/completions?code=canary");
});

it("the model gateway passes on an answer's headers and pieces at once, before the next piece exists", async () => {
  let answering: ServerResponse | undefined;
  const model = await service((_, response) => {
    answering = response;
    response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
  });
  const { ask } = await gatewayTo(`${model.url}/v1`);
  const answer = await ask("/chat/completions");
  const reader = answer.body?.getReader();
  for (const piece of ["data: one\n\n", "data: two\n\n"]) {
    answering?.write(piece);
    expect(Buffer.from((await reader?.read())?.value ?? []).toString()).toBe(piece);
  }
  answering?.end();
  expect((await reader?.read())?.done).toBe(true);
});

it("the model gateway stops reading from the service while the server does not read", async () => {
  const piece = Buffer.alloc(64 * 1024);
  let written = 0;
  let isBlocked = false;
  const model = await service((_, response) => {
    const write = () => {
      while (written < 512 * 1024 * 1024) {
        written += piece.length;
        isBlocked = !response.write(piece);
        if (isBlocked) return void response.once("drain", write);
      }
      response.end();
    };
    write();
  });
  const { session } = await gatewayTo(`${model.url}/v1`);
  const { port } = new URL(session.baseUrl);
  const headers = { authorization: `Bearer ${session.apiKey}` };
  const options = { port, host: "127.0.0.1", method: "POST", path: "/v1/chat/completions", headers };
  const answer = await new Promise<IncomingMessage>((resolve) => request(options, resolve).end("{}"));
  // The sockets' buffers fill up, and then nothing more is written.
  let before = -1;
  await expect
    .poll(
      () => {
        const isStill = isBlocked && written === before;
        before = written;
        return isStill;
      },
      { interval: 200 },
    )
    .toBe(true);
  expect(written).toBeLessThan(64 * 1024 * 1024);
  answer.destroy();
});

it("the model gateway ends its request to the service when the server hangs up before or during the answer", async () => {
  for (const hasBegun of [false, true]) {
    let isClosed = false;
    const arrivals = new EventEmitter();
    const arrival = once(arrivals, "request");
    const model = await service((request, response) => {
      request.socket.once("close", () => {
        isClosed = true;
      });
      if (hasBegun) response.writeHead(200).write("begun");
      arrivals.emit("request");
    });
    const { gateway, ask } = await gatewayTo(`${model.url}/v1`);
    const abort = new AbortController();
    const asked = ask("/chat/completions", { signal: abort.signal });
    await arrival;
    if (hasBegun) await asked;
    expect(gateway.requests).toEqual({ inFlight: 1, failed: 0 });
    abort.abort();
    await asked.then((answer) => answer.text()).catch(() => "aborted");
    await expect.poll(() => isClosed).toBe(true);
    await expect.poll(() => gateway.requests).toEqual({ inFlight: 0, failed: 0 });
  }
});

it("when the model service cuts an answer, the model gateway cuts it for the server, too", async () => {
  const model = await service((request, response) => {
    response.writeHead(200).write("begun");
    setImmediate(() => request.socket.destroy());
  });
  const { gateway, ask } = await gatewayTo(`${model.url}/v1`);
  await expect(ask("/chat/completions").then((answer) => answer.text())).rejects.toThrow();
  await expect.poll(() => gateway.requests).toEqual({ inFlight: 0, failed: 1 });
});

it("a model service that cannot be reached is reported with 502, and a silent one with 504", async () => {
  const unreachable = await gatewayTo("http://127.0.0.1:1/v1");
  const answer = await unreachable.ask("/chat/completions");
  expect(answer.status).toBe(502);
  expect(await answer.json()).toMatchObject({
    error: { message: "http://127.0.0.1:1/v1 (provider.baseUrl) cannot be reached: connection refused." },
  });
  expect(unreachable.gateway.requests).toEqual({ inFlight: 0, failed: 1 });
  const silent = await gatewayTo(`${(await service(() => undefined)).url}/v1`, { silenceMs: 50 });
  const late = await silent.ask("/chat/completions");
  expect([late.status, await late.text()]).toEqual([504, expect.stringMatching(/has not answered within 0\.05 s\./)]);
});

it("after the service refuses a key, the request is sent again with the new key in the file", async () => {
  const path = join(folder, "key");
  const put = (key: string) => writeFileSync(path, `${key}\n`, { mode: 0o600 });
  put("old");
  const bodies: string[] = [];
  const model = await service(({ headers }, response, body) => {
    bodies.push(body);
    if (headers.authorization === "Bearer old") put("new");
    response.writeHead(headers.authorization === "Bearer new" ? 200 : 401).end(headers.authorization);
  });
  const { ask } = await gatewayTo(`${model.url}/v1`, { key: new ProviderKey({ from: "file", path }, {}) });
  expect(await (await ask("/chat/completions", { body: "prompt" })).text()).toBe("Bearer new");
  expect(bodies).toEqual(["prompt", "prompt"]);
});

it("if the service refuses the key and there is no newer key, the refusal reaches the server with the service's words", async () => {
  let requests = 0;
  const model = await service((_, response) => {
    requests += 1;
    response.writeHead(401).end("no");
  });
  const { ask } = await gatewayTo(`${model.url}/v1`);
  const answer = await ask("/chat/completions");
  const message = `${model.url}/v1 refused the key in KEY (provider.apiKey), status 401: "no".`;
  expect([answer.status, await answer.json(), requests]).toEqual([
    424,
    { error: { message, type: "api_error", param: null, code: null } },
    1,
  ]);
});

it.each([
  ["a part of the key", 401, { error: { message: `Wrong key: ${KEY.slice(0, 6)}.` } }, 'status 401: "Wrong key: ***".'],
  ["the end of the key", 401, { error: { message: `Wrong key ..${KEY.slice(-4)}.` } }, 'status 401: "Wrong key ***".'],
  ["a masked key", 401, { error: { message: "Wrong key ab****yz" } }, 'status 401: "Wrong key ***".'],
  ["the secret of the URL", 500, { message: "no /v1?sig=hush" }, 'failed, status 500: "no ***".'],
  ["control characters", 403, { error: "a\u001b[2J\u202eb\nc" }, 'status 403: "a\\u{1b}[2J\\u{202e}b c".'],
  ["very long words", 503, { detail: "no ".repeat(500) }, `failed, status 503: "${"no ".repeat(99)}…".`],
  ["a page in HTML", 502, "<html><h1>Bad</h1>\n<p>gateway</p>", 'failed, status 502: "Bad gateway".'],
  ["no words", 429, "", "limits the use of the key in KEY (provider.apiKey), status 429."],
] as const)("the message about a failure of the service is safe if it has %s", async (_, status, body, end) => {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const model = await service((_request, response) => response.writeHead(status).end(text));
  const { ask } = await gatewayTo(`${model.url}/v1?sig=hush`);
  const { error } = (await (await ask("/chat/completions")).json()) as { error: { message: string } };
  expect(error.message).toMatch(new RegExp(`^${model.url}/v1 `));
  expect(error.message.endsWith(end), error.message).toBe(true);
});

it("the error of the service keeps the code that the runtime reads", async () => {
  const code = "context_length_exceeded";
  const model = await service((_, response) =>
    response.writeHead(400).end(JSON.stringify({ error: { message: "too long", type: "t", code } })),
  );
  const { ask } = await gatewayTo(`${model.url}/v1`);
  const message = `${model.url}/v1 refused the request, status 400: "too long".`;
  expect(await (await ask("/chat/completions")).json()).toEqual({ error: { message, type: "t", code } });
});

it("if the provider's key cannot be read, the server gets an error that names the key's file", async () => {
  const path = join(folder, "gone");
  const model = await service((_, response) => response.end("reached"));
  const { ask } = await gatewayTo(`${model.url}/v1`, { key: new ProviderKey({ from: "file", path }, {}) });
  const answer = await ask("/chat/completions");
  expect(answer.status).toBe(424);
  expect(await answer.text()).toContain(`The key file ${path} does not exist.`);
});

it("the model gateway passes on a body of more than 1 MB as it arrives", async () => {
  const model = await service((_, response, body) => response.end(String(body.length)));
  const { ask } = await gatewayTo(`${model.url}/v1`);
  expect(await (await ask("/chat/completions", { body: "x".repeat(3_000_000) })).text()).toBe("3000000");
});

it("model requests share a connection to the service, and the gateway replaces a broken connection", async () => {
  const model = await service((_, response) => response.end("ok"));
  const { ask } = await gatewayTo(`${model.url}/v1`);
  for (let turn = 0; turn < 3; turn++) expect(await (await ask("/chat/completions")).text()).toBe("ok");
  expect(model.sockets.size).toBe(1);
  for (const socket of model.sockets) socket.resetAndDestroy();
  expect(await (await ask("/chat/completions")).text()).toBe("ok");
});
