import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { type AddressInfo, connect, createServer, type NetConnectOpts, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ModelGateway } from "../../src/providers/gateway/gateway.js";
import { ProviderKey } from "../../src/providers/provider-key.js";
import { ServerRules } from "../../src/sandbox/network/addresses.js";
import { EgressProxy } from "../../src/sandbox/network/proxy.js";
import { FleetMetrics } from "../../src/serve/report/metrics.js";
import { HealthEndpoint } from "../../src/serve/report/probes.js";
import { eventually } from "../fixtures/eventually.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { TestApi } from "../http/harness.js";

const KEY = "sk-canary";
const SMUGGLED = "POST /smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
const LENGTH = `Content-Length: ${SMUGGLED.length}`;
const CHUNKED = "Transfer-Encoding: chunked";
/** The body as chunks, and chunks that end before the smuggled request. */
const IN_CHUNKS = `${SMUGGLED.length.toString(16)}\r\n${SMUGGLED}\r\n0\r\n\r\n`;
const AFTER_CHUNKS = `0\r\n\r\n${SMUGGLED}`;
const afterChunks = `Content-Length: ${AFTER_CHUNKS.length}`;

interface Case {
  name: string;
  /** The lines after the first line of the request and its usual headers. */
  lines: readonly string[];
  body?: string;
  method?: "GET" | "HEAD" | "POST";
  /** Whether each entrance has to refuse the request and close the connection. Otherwise, it may read one request. */
  isRefused?: boolean;
  /** The same for the model gateway alone. */
  isRefusedByGateway?: boolean;
  version?: string;
}

const refused = (name: string, lines: readonly string[], body: string, more: Partial<Case> = {}): Case => ({
  name,
  lines,
  body,
  isRefused: true,
  ...more,
});
const whole = (name: string, lines: readonly string[], body: string, more: Partial<Case> = {}): Case => ({
  name,
  lines,
  body,
  ...more,
});

const CASES: readonly Case[] = [
  refused("CL.TE", [afterChunks, CHUNKED], AFTER_CHUNKS),
  refused("CL.TE with the encoding first", [CHUNKED, afterChunks], AFTER_CHUNKS),
  refused("TE.CL", ["Content-Length: 4", CHUNKED], IN_CHUNKS),
  ...[
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: \x0bchunked",
    'Transfer-Encoding: "chunked"',
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding\r\n : chunked",
    "X-A: b\nTransfer-Encoding: chunked",
    "X-A: b\rTransfer-Encoding: chunked",
    "X-A: b\0\r\nTransfer-Encoding: chunked",
    " Transfer-Encoding: chunked",
    "Transfer-Encoding",
  ].map((line) => refused(`CL.TE with ${JSON.stringify(line)}`, [afterChunks, line], AFTER_CHUNKS)),
  whole("a name that only resembles Transfer-Encoding", [afterChunks, "Transfer_Encoding: chunked"], AFTER_CHUNKS),
  ...["xchunked", "chunked, identity", "identity", "\x0bchunked"].map((value) =>
    refused(`the encoding ${JSON.stringify(value)} alone`, [`Transfer-Encoding: ${value}`], IN_CHUNKS),
  ),
  whole("the encoding gzip, chunked", ["Transfer-Encoding: gzip, chunked"], IN_CHUNKS, { isRefusedByGateway: true }),
  whole("chunked in HTTP/1.0", [CHUNKED], IN_CHUNKS, { version: "1.0" }),
  whole("CL.0", [LENGTH], SMUGGLED),
  whole("a chunked body", [CHUNKED], IN_CHUNKS),
  ...(["GET", "HEAD"] as const).flatMap((method) => {
    const more = { method, isRefusedByGateway: true };
    return [
      whole(`${method} with a length`, [LENGTH], SMUGGLED, more),
      whole(`${method} with chunks`, [CHUNKED], IN_CHUNKS, more),
      whole(`${method} with a length that Connection names`, ["Connection: content-length", LENGTH], SMUGGLED, more),
      whole(`${method} with chunks that Connection names`, ["Connection: transfer-encoding", CHUNKED], IN_CHUNKS, more),
      refused(`${method} with both framings`, [LENGTH, CHUNKED], IN_CHUNKS, { method }),
    ];
  }),
  whole(
    "POST with a length that Connection names",
    ["Connection: content-length, host, authorization", LENGTH],
    SMUGGLED,
  ),
  whole("POST with chunks that Connection names", ["Connection: transfer-encoding, host", CHUNKED], IN_CHUNKS),
  refused("the same length twice", [LENGTH, LENGTH], SMUGGLED),
  refused("two different lengths", ["Content-Length: 0", LENGTH], SMUGGLED),
  ...["5, 5", "+5", "-5", "0x5", "5 5", "5;", "", "1e2", "18446744073709551621"].map((value) =>
    refused(`the length ${JSON.stringify(value)}`, [`Content-Length: ${value}`], SMUGGLED),
  ),
  refused("a space before the colon of the length", [`Content-Length : ${SMUGGLED.length}`], SMUGGLED),
  whole("a folded line", ["X-A: b", " c", LENGTH], SMUGGLED),
  refused("a folded length", ["Content-Length:", ` ${SMUGGLED.length}`], SMUGGLED),
  refused("a bare CR between headers", [`X-A: b\r${LENGTH}`], SMUGGLED),
  refused("a bare LF between headers", [`X-A: b\n${LENGTH}`], SMUGGLED),
  refused("a line without a colon", ["X-A", LENGTH], SMUGGLED),
  whole("a chunk extension", [CHUNKED], IN_CHUNKS.replace("\r\n", ';a="b"\r\n')),
  refused("a chunk extension with a bare LF", [CHUNKED], IN_CHUNKS.replace("\r\n", ";a\nb\r\n")),
  refused("a chunk extension with a bare CR", [CHUNKED], IN_CHUNKS.replace("\r\n", ";a\rb\r\n")),
  refused("a chunk size that ends with a bare LF", [CHUNKED], IN_CHUNKS.replace("\r\n", "\n")),
  ...["0x5", "-5", "+5", "5 5", "1ffffffffffffffff", ""].map((size) =>
    refused(`the chunk size ${JSON.stringify(size)}`, [CHUNKED], `${size}\r\nhello\r\n0\r\n\r\n`),
  ),
  refused("a chunk longer than its size", [CHUNKED], `5\r\nhelloxx\r\n0\r\n\r\n`),
  refused("a chunk without an end of line", [CHUNKED], `5\r\nhello0\r\n\r\n`),
  whole(
    "trailers with another length",
    [CHUNKED, "Trailer: Content-Length"],
    "0\r\nContent-Length: 99\r\nHost: evil\r\n\r\n",
  ),
  whole(
    "an upgrade to HTTP/2",
    ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA", LENGTH],
    SMUGGLED,
  ),
  whole("an upgrade to WebSocket", ["Connection: Upgrade", "Upgrade: websocket", LENGTH], SMUGGLED),
  whole("Expect: 100-continue", ["Expect: 100-continue", LENGTH], SMUGGLED),
  whole("an unknown Expect", ["Expect: 200-ok", LENGTH], SMUGGLED),
  whole("HTTP/2.0", [LENGTH], SMUGGLED, { version: "2.0" }),
  refused("HTTP/1.1 with more text", [LENGTH], SMUGGLED, { version: "1.1 x" }),
];

/** A request as the service behind an entrance reads it. */
interface Read {
  connection: number;
  line: string;
  head: string;
  body: string;
}

/**
 * A service that reads requests as RFC 9112 describes them, and answers with what it read. It answers a request for
 * `/smuggled` or with the word POISON only once another request follows on the same connection.
 */
class RawService {
  readonly read: Read[] = [];
  readonly #server = createServer((socket) => this.#serve(socket));
  #connections = 0;

  /** The numbers of the open connections. */
  readonly open = new Set<number>();

  async listen(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.close();
  }

  #serve(socket: Socket): void {
    const connection = ++this.#connections;
    let bytes = "";
    let held = "";
    this.open.add(connection);
    socket.on("error", () => undefined);
    socket.once("close", () => this.open.delete(connection));
    socket.on("data", (piece) => {
      bytes += piece.toString("latin1");
      for (let next = take(bytes); next !== null; next = take(bytes)) {
        bytes = next.rest;
        this.read.push({ connection, ...next.read });
        const text = `${next.read.line} ${next.read.body}`;
        const content = text.startsWith("HEAD") ? "" : text;
        const answer = `HTTP/1.1 200 OK\r\nContent-Length: ${text.length}\r\n\r\n${content}`;
        if (/\/smuggled /.test(next.read.line) || next.read.body.includes("POISON")) held += answer;
        else {
          socket.write(held + answer);
          held = "";
        }
      }
    });
  }
}

/** Takes one whole request off the front. */
function take(bytes: string): { read: Omit<Read, "connection">; rest: string } | null {
  const end = bytes.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const head = bytes.slice(0, end);
  const [line = ""] = head.split("\r\n");
  let rest = bytes.slice(end + 4);
  let body = "";
  if (/^transfer-encoding: *chunked$/im.test(head)) {
    for (;;) {
      const [, size = ""] = /^([0-9a-f]+)\r\n/i.exec(rest) ?? [];
      const from = size.length + 2;
      const length = Number.parseInt(size, 16);
      if (size === "" || rest.length < from + length + 2) return null;
      body += rest.slice(from, from + length);
      rest = rest.slice(from + length + 2);
      if (length === 0) return { read: { line, head, body }, rest };
    }
  }
  const length = Number(/^content-length: *(\d+)$/im.exec(head)?.[1] ?? 0);
  if (rest.length < length) return null;
  body = rest.slice(0, length);
  return { read: { line, head, body }, rest: rest.slice(length) };
}

interface Entrance {
  at: NetConnectOpts;
  /** The text that a client sends before its first request. */
  first?: string;
  target: string;
  headers: string;
  /**
   * The target of a second request, and a text that occurs only in its answer. The egress proxy refuses a second one.
   */
  probe: readonly [target: string, mark: string];
  /** The requests that the service behind this entrance has read. */
  read: Read[];
}

interface Outcome {
  /** The status codes of the answers before that to the probe, without `100 Continue`. */
  answers: string[];
  /** Whether the entrance closed the connection, so that the probe got no answer. */
  isClosed: boolean;
}

async function attack({ at, first = "", target, headers, probe }: Entrance, each: Case): Promise<Outcome> {
  const { method = "POST", lines, body = "", version = "1.1" } = each;
  const [probed, mark] = probe;
  const socket = connect(at);
  let received = "";
  let isClosed = false;
  socket.on("data", (piece) => {
    received += piece.toString("latin1");
  });
  socket.on("error", () => undefined);
  socket.on("close", () => {
    isClosed = true;
  });
  const answers = () => [...received.matchAll(/HTTP\/1\.1 (?!100)(\d{3})/g)].map(([, status]) => String(status));
  const head = [`${method} ${target} HTTP/${version}`, "Host: localhost", headers, ...lines];
  socket.write(`${first}${head.filter((line) => line !== "").join("\r\n")}\r\n\r\n${body}`, "latin1");
  await eventually("an answer", () => answers().length > 0 || isClosed);
  const more = [`GET ${probed} HTTP/1.1`, "Host: localhost", headers].filter((line) => line !== "");
  if (!isClosed) socket.write(`${more.join("\r\n")}\r\n\r\n`);
  await eventually("the end", () => isClosed || received.includes(mark));
  socket.destroy();
  return { answers: received.includes(mark) ? answers().slice(0, -1) : answers(), isClosed };
}

const service = new RawService();
const entrances = new Map<string, Entrance>();
const opened: (() => unknown)[] = [];
let gateway: ModelGateway;

beforeAll(async () => {
  const url = await service.listen();
  opened.push(() => service.close());
  gateway = await modelGateway(`${url}/v1`);
  opened.push(async () => await gateway.close());
  const tcp = (address: { port: number }) => ({ host: "127.0.0.1", port: Number(address.port) });
  entrances.set("model gateway", {
    at: tcp(new URL(gateway.baseUrl) as unknown as { port: number }),
    target: "/v1/models",
    headers: bearer("alice"),
    probe: ["/v1/models?probe", "GET /v1/models?probe"],
    read: service.read,
  });
  entrances.set("egress proxy", await egressProxy(url));
  const api = await TestApi.open();
  opened.push(async () => await api[Symbol.asyncDispose]());
  entrances.set("HTTP API", {
    at: tcp(api.door.address),
    target: "/v1/me",
    headers: `Authorization: Bearer ${await api.token("alice")}`,
    probe: ["/probe", "GET /probe"],
    read: [],
  });
  const health = await HealthEndpoint.open({
    address: { host: "127.0.0.1", port: 0 },
    metrics: await FleetMetrics.open({ version: "0" }),
    health: { unhealthy: () => [], unready: () => [] },
    log: () => undefined,
    signal: new AbortController().signal,
  });
  opened.push(async () => await health.close());
  const at = tcp(health.address);
  entrances.set("metrics", { at, target: "/healthz", headers: "", probe: ["/probe", "There are"], read: [] });
});
afterAll(async () => {
  for (const close of opened.reverse()) await close();
});

async function modelGateway(baseUrl: string): Promise<ModelGateway> {
  const source = { apiKey: { from: "env", name: "KEY" } as const, bearer: false };
  const key = new ProviderKey({ from: "env", name: "KEY" }, { KEY });
  return await ModelGateway.start({ type: "openai", baseUrl, wireApi: "completions", ...source }, key, {});
}

const bearer = (session: string) => `Authorization: Bearer ${gateway.providerFor(session).apiKey}`;

async function egressProxy(url: string): Promise<Entrance> {
  const rules = new ServerRules([new URL(url).host]);
  const proxy = new EgressProxy({
    serverOf: () => ({ user: "alice", server: "alice-1", rules }),
    report: () => undefined,
    limits: { refusalMs: 0 },
  });
  const folder = mkdtempSync(join(tmpdir(), "fleet-smuggling-"));
  const server = createServer({ allowHalfOpen: true }, (socket) => proxy.accept(socket, () => ({})));
  server.listen(join(folder, "egress"));
  await once(server, "listening");
  opened.push(async () => {
    server.close();
    for (const socket of proxy.open) socket.destroy();
    await removeFolder(folder);
  });
  const at = { path: join(folder, "egress") };
  return {
    at,
    first: "launch\n",
    target: `${url}/v1/models`,
    headers: "",
    probe: ["/probe", "HTTP/1.1 503"],
    read: service.read,
  };
}

describe.each(["model gateway", "egress proxy", "HTTP API", "metrics"])(
  "request smuggling: the entrance %s",
  (name) => {
    it.each(CASES)(
      "$name: it refuses the request and closes the connection, or reads exactly one request",
      async (each) => {
        const entrance = entrances.get(name) as Entrance;
        const target = name === "model gateway" && each.method === undefined ? "/v1/chat/completions" : entrance.target;
        const before = entrance.read.length;
        const { answers, isClosed } = await attack({ ...entrance, target }, each);
        const read = entrance.read.slice(before).filter(({ line }) => !line.includes("probe"));
        const isGateway = name === "model gateway";
        if (each.isRefused === true || (isGateway && each.isRefusedByGateway === true)) {
          expect({ isClosed, read }).toEqual({ isClosed: true, read: [] });
          // The HTTP API and the metrics may already be answering when they find the fault in the body.
          if (isGateway) expect(answers).toEqual(["400"]);
          else expect(["400", undefined]).toContain(answers.at(-1));
          return;
        }
        expect(answers).toHaveLength(1);
        for (const { line, body } of read) {
          expect(line).toContain(` ${target.replace(/^http:..[^/]*/, "")} `);
          expect([SMUGGLED, AFTER_CHUNKS, ""]).toContain(body);
        }
        expect(read.length).toBeLessThanOrEqual(1);
      },
    );
  },
);

describe("two users of one model gateway", () => {
  const post = async (session: string, body: string, base = gateway.baseUrl) => {
    const headers = { authorization: bearer(session).replace("Authorization: ", "") };
    const answer = await fetch(`${base}/chat/completions`, { method: "POST", headers, body });
    return await answer.text();
  };

  it.each([
    ["chunks", (body: string) => ["Transfer-Encoding: chunked", `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`]],
    [
      "a length that Connection names",
      (body: string) => [`Connection: content-length\r\nContent-Length: ${body.length}`, body],
    ],
  ] as const)(
    "bob gets his own answer after alice has sent a GET whose body is a second request, with %s",
    async (_, framed) => {
      const inner = `POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nPOISON`;
      const [header = "", body = ""] = framed(inner);
      const entrance = entrances.get("model gateway") as Entrance;
      const socket = connect(entrance.at);
      const lines = ["GET /v1/models HTTP/1.1", "Host: localhost", entrance.headers, header];
      socket.write(`${lines.join("\r\n")}\r\n\r\n${body}`);
      await once(socket, "data");
      socket.destroy();
      for (const body of ["one", "two"])
        expect(await post("bob", body)).toBe(`POST /v1/chat/completions HTTP/1.1 ${body}`);
    },
  );

  it("requests of two sessions never share a connection to the service, and those of one session do", async () => {
    const before = service.read.length;
    for (const body of ["1", "2", "3"]) for (const user of ["ann", "ben"]) await post(user, user + body);
    const of = (user: string) =>
      new Set(
        service.read.slice(before).flatMap(({ body, connection }) => (body.startsWith(user) ? [connection] : [])),
      );
    expect([of("ann").size, of("ben").size]).toEqual([1, 1]);
    expect([...of("ann")]).not.toEqual([...of("ben")]);
  });

  it("the gateway closes a session's connections to the service when the session is no longer used", async () => {
    await post("leaving", "x");
    const { connection } = service.read.at(-1) as Read;
    expect(service.open.has(connection)).toBe(true);
    gateway.forget("leaving");
    await eventually("the end of the connection", () => !service.open.has(connection));
  });

  it("the gateway sends the service only the headers that it needs", async () => {
    const lines = [
      "Cookie: a=b",
      "OpenAI-Project: p",
      "OpenAI-Organization: o",
      "Forwarded: for=x",
      "X-Forwarded-For: x",
    ];
    const entrance = { ...(entrances.get("model gateway") as Entrance), target: "/v1/chat/completions" };
    await attack(entrance, { name: "", lines: [...lines, "Anthropic-Beta: b", "Content-Length: 2"], body: "{}" });
    const { head } = service.read.findLast(({ line }) => line.startsWith("POST")) as Read;
    const names = head
      .split("\r\n")
      .slice(1)
      .map((line) => line.split(":")[0]?.toLowerCase());
    expect(names.sort()).toEqual(
      ["accept-encoding", "anthropic-beta", "authorization", "connection", "content-length", "host"].sort(),
    );
  });
});
