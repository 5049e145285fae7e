import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer as createHttpServer, type RequestListener } from "node:http";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { ServerRules } from "../../../src/sandbox/network/addresses.js";
import type { Lookup } from "../../../src/sandbox/network/outbound.js";
import { EgressProxy, type ProxyOptions, type RefusedRequest } from "../../../src/sandbox/network/proxy.js";

const LAUNCH = "launch-of-alice";

interface Trial {
  proxy: EgressProxy;
  path: string;
  refused: RefusedRequest[];
}

/** Starts a proxy on a Unix socket. It knows one server, which belongs to Alice. */
async function proxyWith(
  allow: readonly string[],
  { names = {}, limits }: { names?: Record<string, readonly string[]>; limits?: ProxyOptions["limits"] } = {},
): Promise<Trial & { lookUp: ReturnType<typeof vi.fn<Lookup>> }> {
  const refused: RefusedRequest[] = [];
  const lookUp = vi.fn<Lookup>(async (name) => {
    const found = names[name];
    if (found === undefined) throw new Error("ENOTFOUND");
    return await Promise.resolve(found);
  });
  const proxy = new EgressProxy({
    serverOf: (launchId) =>
      launchId === LAUNCH ? { user: "alice", server: "alice-1", rules: new ServerRules(allow) } : null,
    report: (entry) => void refused.push(entry),
    lookUp,
    limits: { refusalMs: 0, ...limits },
  });
  const folder = mkdtempSync(join(tmpdir(), "fleet-egress-"));
  const path = join(folder, "egress");
  const server = createServer({ allowHalfOpen: true }, (socket) =>
    proxy.accept(socket, () => ({ counts: proxy.counts })),
  );
  server.listen(path);
  await once(server, "listening");
  onTestFinished(() => {
    server.close();
    for (const socket of proxy.open) socket.destroy();
    rmSync(folder, { recursive: true });
  });
  return { proxy, path, refused, lookUp };
}

async function listening(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => void sockets.add(socket));
  onTestFinished(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return (server.address() as AddressInfo).port;
}

/** A host that sends everything back, and ends when the client does. */
const echoing = async () =>
  await listening(
    createServer({ allowHalfOpen: true }, (socket) => {
      socket.on("error", () => undefined);
      socket.pipe(socket);
    }),
  );
const serving = async (listener: RequestListener) => await listening(createHttpServer(listener));

class Connection {
  readonly socket: Socket;
  received = "";
  ended = false;

  constructor(path: string, first: string | null = `${LAUNCH}\n`) {
    this.socket = connect({ path, allowHalfOpen: true });
    this.socket.on("error", () => undefined);
    this.socket.on("data", (chunk) => (this.received += chunk.toString("latin1")));
    for (const event of ["end", "close"] as const) this.socket.on(event, () => (this.ended = true));
    onTestFinished(() => void this.socket.destroy());
    if (first !== null) this.socket.write(first);
  }

  send(text: string): this {
    this.socket.write(text);
    return this;
  }

  async until(part: string | RegExp): Promise<string> {
    await vi.waitFor(() => expect(this.received).toMatch(part), 10_000);
    return this.received;
  }

  /** Everything until the other side ends the connection. */
  async all(): Promise<string> {
    await vi.waitFor(() => expect(this.ended).toBe(true), 10_000);
    this.socket.destroy();
    return this.received;
  }
}

const CONNECT = (target: string) => `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`;
const ESTABLISHED = "HTTP/1.1 200 Connection established\r\n\r\n";

/** Sends one CONNECT, and returns the whole answer. */
const ask = async ({ path }: Trial, target: string) => await new Connection(path).send(CONNECT(target)).all();

describe("CONNECT", () => {
  it("CONNECT to an allowed address copies data both ways, and passes on the end of each direction", async () => {
    const port = await echoing();
    const trial = await proxyWith([`127.0.0.1:${port}`]);
    const connection = new Connection(trial.path).send(CONNECT(`127.0.0.1:${port}`));
    await connection.until("established");
    const text = "x".repeat(3_000_000);
    connection.socket.end(text);
    expect((await connection.all()).length).toBe(ESTABLISHED.length + text.length);
    expect(trial.proxy.counts).toMatchObject({ allowed: 1, refused: 0 });
    await vi.waitFor(() => expect(trial.proxy.open.size).toBe(0), 10_000);
  });

  it("CONNECT passes on bytes that the client sends before the answer, in one packet or byte by byte", async () => {
    const port = await echoing();
    const trial = await proxyWith([`127.0.0.1:${port}`]);
    const request = `${LAUNCH}\n${CONNECT(`127.0.0.1:${port}`)}early`;
    const atOnce = new Connection(trial.path, request);
    expect(await atOnce.until("early")).toBe(`${ESTABLISHED}early`);
    const slowly = new Connection(trial.path, null);
    for (const character of request) {
      slowly.socket.write(character);
      await new Promise((resolve) => setImmediate(resolve));
    }
    slowly.send(" late");
    expect(await slowly.until("late")).toBe(`${ESTABLISHED}early late`);
  });

  it("CONNECT to a name with several addresses uses only those that are not blocked", async () => {
    const port = await echoing();
    const names = { "a.example": ["127.0.0.2", "::1", "169.254.169.254", "127.0.0.1"] };
    const trial = await proxyWith([`a.example:${port}`, `127.0.0.1:${port}`], { names });
    await new Connection(trial.path).send(CONNECT(`a.example:${port}`)).until("established");
  });

  it.each([
    "10.0.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "::1",
    "::ffff:127.0.0.1",
    "fe80::1%lo",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "not an address",
  ])("CONNECT to an allowed name that leads to %s is refused", async (address) => {
    const trial = await proxyWith(["*:*"], { names: { "a.example": [address] } });
    const answer = await ask(trial, "a.example:443");
    expect(answer).toMatch(/^HTTP\/1\.1 403 Forbidden by sandbox\.allow\r\n/);
    // The answer must not show the agent to which internal address a name leads.
    expect(answer).not.toContain(address);
    expect(trial.refused).toMatchObject([
      { user: "alice", server: "alice-1", result: "blocked", target: { host: "a.example", port: 443 } },
    ]);
  });

  it.each([
    ["b.example:443", '"b.example" in sandbox.allow'],
    ["a.example:80", '"a.example:80" in sandbox.allow'],
    ["sub.a.example:443", '"sub.a.example"'],
    ["8.8.8.8:53", '"8.8.8.8:53"'],
    ["[2606:4700::1111]:53", '"[2606:4700::1111]:53"'],
    ["[::ffff:127.0.0.1]:443", '"::ffff:127.0.0.1"'],
  ])("CONNECT to %s, which no entry allows, is refused with advice to add an entry", async (target, advice) => {
    const trial = await proxyWith(["a.example"], { names: { "a.example": ["8.8.8.8"] } });
    expect(await ask(trial, target)).toContain(`The operator can allow it with ${advice}`);
    expect(trial.lookUp).not.toHaveBeenCalled();
    expect(trial.refused).toHaveLength(1);
    expect(trial.proxy.counts).toMatchObject({ refused: 1, allowed: 0 });
  });

  it.each([
    "127.1:443",
    "0x7f.0.0.1:443",
    "2130706433:443",
    "0177.0.0.1:443",
    "127.0.0.1%00.example:443",
    "[127.0.0.1]:443",
    "[::1%lo]:443",
    "::1:443",
    "[a.example]:443",
    "a.example",
    "a.example:0",
    "a.example:65536",
    "a.example:443:80",
    "a.example@b.example:443",
    ":443",
    "/",
  ])("CONNECT to %s, which is neither a name nor an address with a port, is refused", async (target) => {
    const trial = await proxyWith(["*:*", "0.0.0.0/0:*", "127.0.0.1:*"], { names: { "a.example": ["127.0.0.1"] } });
    expect(await ask(trial, target)).toMatch(/^HTTP\/1\.1 40[03] /);
    expect(trial.proxy.counts.allowed).toBe(0);
  });

  it("CONNECT answers with the reason if the host refuses the connection or the name does not exist", async () => {
    const server = createServer();
    const port = await listening(server);
    server.close();
    const trial = await proxyWith([`127.0.0.1:${port}`, "a.example"]);
    expect(await ask(trial, `127.0.0.1:${port}`)).toContain("did not answer (ECONNREFUSED)");
    expect(await ask(trial, "a.example:443")).toContain("a.example was not found");
    expect(trial.proxy.counts).toMatchObject({ failed: 2 });
  });

  it("CONNECT gets 504 when its look-up takes too long, and does not delay a CONNECT to another name", async () => {
    const port = await echoing();
    const trial = await proxyWith(["*:*", `127.0.0.1:${port}`], { limits: { connectMs: 1_000 } });
    trial.lookUp.mockImplementation(async (name) => {
      if (name.startsWith("slow")) await new Promise(() => undefined);
      return ["127.0.0.1"];
    });
    const slow = [1, 2, 3].map((n) => new Connection(trial.path).send(CONNECT(`slow${n}.example:${port}`)));
    await new Connection(trial.path).send(CONNECT(`fast.example:${port}`)).until("established");
    for (const connection of slow) expect(await connection.all()).toContain("504");
  });
});

describe("a request without encryption", () => {
  it("a request without encryption is passed on with its body, but without the headers of its connection", async () => {
    let got: object = {};
    const port = await serving((request, response) => {
      const { method, url, headers } = request;
      let body = "";
      request.on("data", (chunk) => (body += chunk));
      request.on("end", () => {
        got = { method, url, headers, body };
        response.writeHead(201, { "x-answer": "yes", connection: "close, x-hop", "x-hop": "1" }).end("made");
      });
    });
    const trial = await proxyWith([`127.0.0.1:${port}`]);
    const head = `POST http://127.0.0.1:${port}/a?b=c HTTP/1.1\r\nHost: other.example\r\nProxy-Authorization: secret\r\nConnection: x-own\r\nX-Own: 1\r\nX-Other: 2\r\n`;
    const connection = new Connection(trial.path).send(
      `${head}Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n`,
    );
    expect(await connection.until("made")).toMatch(/^HTTP\/1\.1 201 Created\r\nx-answer: yes\r\n/);
    expect(connection.received).not.toContain("x-hop");
    expect(got).toMatchObject({
      method: "POST",
      url: "/a?b=c",
      body: "body",
      headers: { host: `127.0.0.1:${port}`, "x-other": "2", "transfer-encoding": "chunked" },
    });
    expect(Object.keys((got as { headers: object }).headers)).not.toEqual(
      expect.arrayContaining(["x-own", "proxy-authorization"]),
    );
  });

  it("a second request without encryption on the same connection is not served", async () => {
    const urls: string[] = [];
    const port = await serving((request, response) => {
      urls.push(request.url ?? "");
      response.end("fine");
    });
    const trial = await proxyWith([`127.0.0.1:${port}`]);
    const get = (path: string) => `GET http://127.0.0.1:${port}${path} HTTP/1.1\r\nHost: x\r\n\r\n`;
    expect(await new Connection(trial.path).send(get("/1") + get("/2")).all()).toContain("Connection: close");
    expect(urls).toEqual(["/1"]);
  });

  it("a request without encryption cannot hide a second request in its body", async () => {
    const urls: string[] = [];
    const port = await serving((request, response) => {
      urls.push(request.url ?? "");
      request.resume();
      response.end("fine");
    });
    const trial = await proxyWith([`127.0.0.1:${port}`]);
    const hidden = `GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n`;
    const chunk = `${hidden.length.toString(16)}\r\n${hidden}\r\n0\r\n\r\n`;
    const head = `GET http://127.0.0.1:${port}/open HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n`;
    expect(await new Connection(trial.path).send(head + chunk).all()).toContain("fine");
    expect(urls).toEqual(["/open"]);
  });

  it.each([
    "/",
    "*",
    "https://127.0.0.1/",
    "http://user:pass@127.0.0.1/",
    "ftp://127.0.0.1/",
    "http://[::1",
    "http://",
  ])("a request without encryption is refused unless it is for an http URL without credentials: %s", async (url) => {
    const trial = await proxyWith(["127.0.0.1:*", "*:*"]);
    const connection = new Connection(trial.path).send(`GET ${url} HTTP/1.1\r\nHost: a.example\r\n\r\n`);
    expect(await connection.all()).toMatch(/^HTTP\/1\.1 400 /);
    expect(trial.proxy.counts.allowed).toBe(0);
  });

  it("a request without encryption needs an entry with port 80", async () => {
    const trial = await proxyWith(["a.example"]);
    const connection = new Connection(trial.path).send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n");
    expect(await connection.all()).toContain('"a.example:80" in sandbox.allow');
  });

  it("a request to an address in another notation counts as a request to that address", async () => {
    const trial = await proxyWith(["*:*"]);
    for (const host of ["0x7f.1", "2130706433", "127.1", "[::ffff:7f00:1]", "%31%32%37.0.0.1"]) {
      const connection = new Connection(trial.path).send(`GET http://${host}/ HTTP/1.1\r\nHost: x\r\n\r\n`);
      expect(await connection.all()).toContain("403");
    }
    expect(trial.refused.map(({ target }) => target?.host)).toEqual([
      ...["127.0.0.1", "127.0.0.1", "127.0.0.1", "::ffff:7f00:1", "127.0.0.1"],
    ]);
    expect(trial.lookUp).not.toHaveBeenCalled();
  });

  it("a request gets 502 if its host answers with something other than HTTP, and the proxy keeps serving", async () => {
    const bad = await listening(createServer((socket) => socket.on("error", () => undefined).end("garbage\r\n\r\n")));
    const good = await serving((_, response) => response.end());
    const trial = await proxyWith([`127.0.0.1:${bad}`, `127.0.0.1:${good}`]);
    const get = (port: number) => `GET http://127.0.0.1:${port}/ HTTP/1.1\r\nHost: x\r\n\r\n`;
    expect(await new Connection(trial.path).send(get(bad)).all()).toMatch(/^HTTP\/1\.1 502 /);
    expect(await new Connection(trial.path).send(get(good)).all()).toMatch(/^HTTP\/1\.1 200 /);
  });
});

describe("a client that misbehaves", () => {
  it.each([
    ["sends no first line in time", null, ""],
    ["sends a first line that is too long", "x".repeat(1_000), ""],
    ["sends no header in time", `${LAUNCH}\n`, "CONNECT a.example:443 HTTP/1.1\r\nX: "],
  ])("a client that %s loses its connection", async (_, first, rest) => {
    const trial = await proxyWith([], { limits: { headerMs: 1_000 } });
    const connection = new Connection(trial.path, first);
    if (rest !== "") connection.send(rest);
    await connection.all();
    await vi.waitFor(() => expect(trial.proxy.open.size).toBe(0), 10_000);
  });

  it.each([
    ["the id of an unknown server", "nobody\n", "403"],
    ["no launch id", CONNECT("a.example:443").replaceAll("\r", ""), "403"],
    ["a path in place of a launch id", "../../../etc/passwd\n", "403"],
    ["garbage", `${LAUNCH}\n\u0016\u0003\u0001garbage\r\n\r\n`, "400"],
    ["a header that is too long", `${LAUNCH}\nCONNECT a:1 HTTP/1.1\r\nX: ${"x".repeat(20_000)}\r\n\r\n`, "431"],
    // Node.js 20 ignores the headers above the 2,000th, and newer versions refuse the request.
    ["many headers", `${LAUNCH}\nCONNECT a:1 HTTP/1.1\r\n${"X: y\r\n".repeat(5_000)}\r\n`, "(403|431)"],
    [
      "two lengths of a body",
      `${LAUNCH}\nPOST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n`,
      "400",
    ],
  ])("a client that sends %s gets an error, and the next client is served", async (_, text, status) => {
    const port = await echoing();
    const trial = await proxyWith([`127.0.0.1:${port}`]);
    expect(await new Connection(trial.path, text).all()).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
    await new Connection(trial.path).send(CONNECT(`127.0.0.1:${port}`)).until("established");
  });

  it("a server at its limit of connections gets 503 for a new one, and can connect again once one closes", async () => {
    const port = await echoing();
    const trial = await proxyWith([`127.0.0.1:${port}`], { limits: { connections: 2 } });
    const connections = [1, 2].map(() => new Connection(trial.path).send(CONNECT(`127.0.0.1:${port}`)));
    for (const connection of connections) await connection.until("established");
    expect(await ask(trial, `127.0.0.1:${port}`)).toMatch(/^HTTP\/1\.1 503 [\s\S]*has 2 connections/);
    expect(trial.proxy.counts).toMatchObject({ limited: 1 });
    connections[0]?.socket.destroy();
    await vi.waitFor(() => expect(trial.proxy.open.size).toBe(1), 10_000);
    await new Connection(trial.path).send(CONNECT(`127.0.0.1:${port}`)).until("established");
  });

  it.each(["nobody\n", "status\n", `${LAUNCH}\n${CONNECT("127.0.0.1:1")}`])(
    "the proxy closes a connection that a client leaves open after the answer to %j",
    async (text) => {
      const trial = await proxyWith([], { limits: { answeredMs: 100, headerMs: 60_000 } });
      await new Connection(trial.path, text).until("\n");
      await vi.waitFor(() => expect(trial.proxy.open.size).toBe(0), 5_000);
    },
  );

  it("when clients leave too many connections open after an answer, the proxy closes the oldest ones", async () => {
    const trial = await proxyWith([], { limits: { answered: 2, answeredMs: 60_000 } });
    const connections = [1, 2, 3, 4, 5].map(() => new Connection(trial.path, "nobody\n"));
    for (const connection of connections) await connection.until("403");
    await vi.waitFor(() => expect(trial.proxy.open.size).toBe(2), 5_000);
  });

  it("a look-up that no client waits for any longer still counts toward the limit of running look-ups", async () => {
    const trial = await proxyWith(["*:*"], { limits: { connectMs: 300 } });
    trial.lookUp.mockImplementation(async () => await new Promise(() => undefined));
    for (let round = 0; round < 3; round++) {
      const targets = [1, 2, 3, 4, 5].map((n) => `name${round}-${n}.example:443`);
      const answers = await Promise.all(targets.map(async (target) => await ask(trial, target)));
      for (const answer of answers) expect(answer).toContain("504");
      await vi.waitFor(() => expect(trial.proxy.open.size).toBe(0), 5_000);
    }
    expect(trial.lookUp).toHaveBeenCalledTimes(4);
  });

  it("when too many connections have sent no first line, the proxy closes the oldest one", async () => {
    const trial = await proxyWith([], { limits: { unnamed: 2 } });
    const silent = [1, 2, 3].map(() => new Connection(trial.path, null));
    await vi.waitFor(() => expect(silent.map(({ ended }) => ended).filter(Boolean)).toHaveLength(1), 10_000);
    await new Connection(trial.path, "status\n").until("counts");
  });

  it("when a client stops reading, the proxy stops reading from the client's target, and still serves others", async () => {
    let sent = 0;
    const port = await listening(
      createServer((socket) => {
        socket.on("error", () => undefined);
        const write = () => {
          while (socket.write(Buffer.alloc(65_536))) sent += 65_536;
        };
        socket.on("drain", write);
        write();
      }),
    );
    const other = await echoing();
    const trial = await proxyWith([`127.0.0.1:${port}`, `127.0.0.1:${other}`]);
    const connection = new Connection(trial.path).send(CONNECT(`127.0.0.1:${port}`));
    connection.socket.pause();
    await vi.waitFor(() => expect(sent).toBeGreaterThan(0), 10_000);
    let before = -1;
    await vi.waitFor(
      () => {
        const same = sent === before;
        before = sent;
        expect(same).toBe(true);
      },
      { timeout: 10_000, interval: 300 },
    );
    expect(sent).toBeLessThan(64 * 1024 * 1024);
    await new Connection(trial.path).send(CONNECT(`127.0.0.1:${other}`)).until("established");
  });
});
