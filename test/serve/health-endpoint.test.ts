import dns from "node:dns";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { Agent, get, type IncomingMessage } from "node:http";
import { connect, createServer, type Server, type Socket } from "node:net";
import { text } from "node:stream/consumers";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { type FleetError, isFleetError } from "../../src/base/errors.js";
import type { Address } from "../../src/config/rules.js";
import { listenOn, showAddress } from "../../src/runtime/launch/listen.js";
import { FleetMetrics } from "../../src/serve/report/metrics.js";
import { type Health, HealthEndpoint, type HealthEndpointOptions } from "../../src/serve/report/probes.js";
import { eventually } from "../fixtures/eventually.js";

const LOOPBACK = { host: "127.0.0.1", port: 0 };
const NEVER = new AbortController().signal;
const FAKE_METRICS = { contentType: "text/plain", judged: () => undefined, failed: () => undefined };

interface Opened {
  endpoint: HealthEndpoint;
  errors: string[];
  url: (path: string) => string;
}

async function opened(given: Partial<HealthEndpointOptions & Health> = {}): Promise<Opened> {
  const { unhealthy = () => [], unready = () => [], ...options } = given;
  const errors: string[] = [];
  const endpoint = await HealthEndpoint.open({
    address: LOOPBACK,
    metrics: await FleetMetrics.open({ version: "0" }),
    health: { unhealthy, unready },
    log: (_level, message) => errors.push(message),
    signal: NEVER,
    ...options,
  });
  onTestFinished(() => endpoint.close());
  return { endpoint, errors, url: (path) => `http://${showAddress(endpoint.address)}${path}` };
}

/** Opens a raw connection. `received` resolves with everything that arrived until the connection closed. */
async function connected({ host, port }: Address): Promise<{ socket: Socket; received: Promise<string> }> {
  const socket = connect({ host, port });
  onTestFinished(() => void socket.destroy());
  const received = text(socket).catch((error: Error) => error.message);
  await once(socket, "connect");
  return { socket, received };
}

async function refusal(work: Promise<unknown>): Promise<FleetError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!isFleetError(error)) throw new Error(`no FleetError, but ${String(error)}`);
  return error;
}

describe("the health endpoint", () => {
  it("/metrics has the fleet's metrics, including the current result of the checks", async () => {
    let reasons: string[] = [];
    const { url } = await opened({ unready: () => reasons });
    const first = await fetch(url("/metrics?x=1"));
    expect(first.status).toBe(200);
    expect(first.headers.get("content-type")).toMatch(/^text\/plain; version=0\.0\.4/);
    const body = await first.text();
    expect(body).toContain("\ncopilotfleet_ready 1\n");
    expect(body).toContain("\ncopilotfleet_healthy 1\n");
    reasons = ["draining"];
    expect(await (await fetch(url("/metrics"))).text()).toContain("\ncopilotfleet_ready 0\n");
  });

  it.each([
    ["/healthz", "unhealthy"],
    ["/readyz", "unready"],
  ] as const)(
    "%s answers 503 with the reasons when its own check fails, and not when the other check fails",
    async (path, check) => {
      let reasons: string[] = [];
      const { url } = await opened({ [check]: async () => reasons });
      const well = await fetch(url(path));
      expect([well.status, await well.json()]).toEqual([200, { ok: true, reasons: [] }]);
      reasons = ["the state folder cannot be written", "no server is ready"];
      const ill = await fetch(url(path));
      expect([ill.status, await ill.json()]).toEqual([503, { ok: false, reasons }]);
      expect(ill.headers.get("cache-control")).toBe("no-store");
      expect(ill.headers.get("content-type")).toBe("application/json");
      expect((await fetch(url(path === "/healthz" ? "/readyz" : "/healthz"))).status).toBe(200);
    },
  );

  it.each(["/", "/metrics/", "/healthz/x", "//metrics", "/constructor", "/../metrics"])(
    "the health endpoint answers 404 to %s",
    async (path) => {
      const { endpoint } = await opened();
      const { socket, received } = await connected(endpoint.address); // fetch would normalise the path
      socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
      expect(await received).toMatch(/^HTTP\/1\.1 404 [\s\S]*\/metrics, \/healthz, \/readyz/);
    },
  );

  it.each(["POST", "PUT", "DELETE", "OPTIONS"])("the health endpoint answers 405 to %s", async (method) => {
    const { url } = await opened();
    const response = await fetch(url("/metrics"), { method });
    expect([response.status, response.headers.get("allow")]).toEqual([405, "GET, HEAD"]);
  });

  it("a health check that throws or hangs counts as failed, and only the log gets the reason", async () => {
    const failing = await opened({
      unhealthy: () => {
        throw new Error("alice's home is gone");
      },
      unready: () => new Promise(() => undefined),
      checkMs: 50,
    });
    const health = await fetch(failing.url("/healthz"));
    expect([health.status, await health.text()]).toEqual([503, expect.stringContaining("the check itself failed")]);
    const ready = await fetch(failing.url("/readyz"));
    expect([ready.status, await ready.json()]).toEqual([503, { ok: false, reasons: ["the check took too long"] }]);
    expect(failing.errors).toEqual([
      "the health endpoint failed: alice's home is gone",
      "the health endpoint failed: no answer within 50 ms",
    ]);
    expect(await (await fetch(failing.url("/metrics"))).text()).toContain("\ncopilotfleet_healthy 0\n");
  });

  it("the health endpoint answers 200 concurrent requests for metrics while other clients send nothing", async () => {
    const { endpoint, url } = await opened();
    await Promise.all(Array.from({ length: 50 }, () => connected(endpoint.address)));
    const scrapes = await Promise.all(
      Array.from({ length: 200 }, async () => {
        const response = await fetch(url("/metrics"));
        return { status: response.status, whole: (await response.text()).endsWith("\n") };
      }),
    );
    expect(new Set(scrapes.map((scrape) => JSON.stringify(scrape)))).toEqual(new Set(['{"status":200,"whole":true}']));
  });
});

describe("slow clients", () => {
  it.each([
    ["sends nothing", ""],
    ["stops in its headers", "GET /metrics HTTP/1.1\r\nHost: x\r\n"],
    ["stops in its body", "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"],
  ])("the health endpoint hangs up on a client that %s", async (_, sent) => {
    const { endpoint } = await opened({ clientMs: 200 });
    const { received } = await connected(endpoint.address).then(({ socket, ...rest }) => {
      socket.write(sent);
      return rest;
    });
    expect(await received).toMatch(/^(HTTP\/1\.1 40[58] |$)/);
  });

  it("the health endpoint hangs up on a client that sends single bytes too slowly", async () => {
    const { endpoint } = await opened({ clientMs: 200 });
    const { socket, received } = await connected(endpoint.address);
    socket.write("GET /metrics HTTP/1.1\r\nX-Slow: ");
    const drip = setInterval(() => socket.writable && socket.write("x"), 20);
    onTestFinished(() => clearInterval(drip));
    expect(await received).toMatch(/^HTTP\/1\.1 408 /);
  });

  it("the health endpoint hangs up on a client that does not read its answer", async () => {
    const large = "x".repeat(50_000_000); // more than a socket's buffers hold
    const metrics = { ...FAKE_METRICS, text: async () => large };
    const { endpoint } = await opened({ metrics, clientMs: 200 });
    const socket = connect(endpoint.address);
    onTestFinished(() => void socket.destroy());
    socket.on("error", () => undefined); // Node.js 24 may report the end of the connection before the client reads
    socket.write("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    // The client reads only after the endpoint has given up, so it gets only the part that the buffers hold.
    await once(socket, "connect");
    await eventually("the connection is given up", () => establishedAt(endpoint.address.port) === 0);
    const received = await text(socket).catch((error: Error) => error.message);
    expect(received.length).toBeLessThan(large.length);
  });
});

describe("closing", () => {
  it("the health endpoint closes without waiting for clients that keep a connection or have sent nothing", async () => {
    const { endpoint, url } = await opened({ clientMs: 60_000 });
    const onIpv6 = { ...endpoint.address, host: "::1" };
    const silent = [await connected(endpoint.address), await connected(onIpv6)];
    // The endpoint accepts connections in their order. So once it answers on later ones, it has accepted these two.
    await fetch(`http://${showAddress(onIpv6)}/healthz`);
    const agent = new Agent({ keepAlive: true });
    onTestFinished(() => agent.destroy());
    const response = await new Promise<IncomingMessage>((resolve) => void get(url("/healthz"), { agent }, resolve));
    await text(response);
    const kept = Object.values(agent.freeSockets).flat();
    expect(kept).toHaveLength(1);
    await Promise.all([endpoint.close(), endpoint.close()]);
    expect(await Promise.all(silent.map(({ received }) => received))).toEqual(["", ""]);
    await eventually("the kept connection is closed", () => kept[0]?.destroyed);
    await expect(fetch(url("/healthz"))).rejects.toThrow();
  });

  it("the health endpoint finishes a running answer when it closes, and then ends that connection", async () => {
    let open: ((reasons: string[]) => void) | undefined;
    const unready = () => new Promise<string[]>((resolve) => (open = resolve));
    const { endpoint, url } = await opened({ unready });
    const answer = fetch(url("/readyz"));
    const finish = await eventually("the check runs", () => open);
    const closing = endpoint.close();
    finish([]);
    const response = await answer;
    expect([response.status, response.headers.get("connection")]).toEqual([200, "close"]);
    expect(await response.json()).toEqual({ ok: true, reasons: [] });
    await closing;
  });
});

describe("the address", () => {
  it("the health endpoint refuses an address that is taken, and names the address and the setting", async () => {
    const holder = createServer().listen(LOOPBACK);
    onTestFinished(() => void holder.close());
    await once(holder, "listening");
    const { port } = holder.address() as { port: number };
    const error = await refusal(opened({ address: { host: "127.0.0.1", port } }));
    expect(error).toMatchObject({ code: "FLEET_ADDRESS_TAKEN", exit: 5, cause: { code: "EADDRINUSE" } });
    expect(error.message).toBe(
      `serve cannot listen on "127.0.0.1:${port}" (serve.metrics): another process listens there`,
    );
    expect(error.suggestions).toEqual([
      `ss -ltnp 'sport = :${port}'`,
      "COPILOTFLEET_SERVE_METRICS=127.0.0.1:0 copilotfleet serve",
    ]);
  });

  it.each([
    ["192.0.2.1", "this host does not have the address"],
    ["2001:db8::1", "this host does not have the address"],
    ["no-such-host.invalid", "has no address"],
  ])("the health endpoint refuses the address %s, which this host does not have", async (host, because) => {
    const error = await refusal(opened({ address: { host, port: 36002 } }));
    expect(error).toMatchObject({ code: "FLEET_ADDRESS_UNUSABLE", exit: 3 });
    expect(error.message).toContain(`"${showAddress({ host, port: 36002 })}" (serve.metrics)`);
    expect(error.message).toContain(because);
  });

  // The tests may run as a user who may open every port, so the error is injected.
  it.each([
    ["EACCES", "this user may not open port 80. Allowed: a port from 1024 on, or 0 for any free port"],
    ["EMFILE", "the system said EMFILE"],
  ])("listenOn refuses an address for which the system reports %s", async (code, because) => {
    const server = createServer();
    server.listen = (): Server => {
      process.nextTick(() => server.emit("error", Object.assign(new Error(`the system said ${code}`), { code })));
      return server;
    };
    const error = await refusal(listenOn(server, "serve.listen", { host: "127.0.0.1", port: 80 }, NEVER));
    expect(error).toMatchObject({ code: "FLEET_ADDRESS_UNUSABLE", exit: 3, cause: { code } });
    expect(error.message).toBe(`serve cannot listen on "127.0.0.1:80" (serve.listen): ${because}`);
    expect(error.suggestions).toContain("COPILOTFLEET_SERVE_LISTEN=127.0.0.1:0 copilotfleet serve");
  });

  it.each(["0.0.0.0", "192.0.2.1", "::"])("listenOn refuses the name localhost if it means %s", async (address) => {
    const family = address.includes(":") ? 6 : 4;
    vi.spyOn(dns.promises, "lookup").mockResolvedValue({ address, family } as never);
    vi.spyOn(dns, "lookup").mockImplementation(((...given: unknown[]) => {
      (given.at(-1) as (error: null, found: object[]) => void)(null, [{ address, family }]);
    }) as never);
    onTestFinished(() => void vi.restoreAllMocks());
    const server = createServer();
    onTestFinished(() => void server.close());
    const error = await refusal(listenOn(server, "serve.listen", { host: "localhost", port: 0 }, NEVER));
    expect(error).toMatchObject({ code: "FLEET_ADDRESS_UNUSABLE", exit: 3 });
    expect(error.message).toContain(`on this machine, "localhost" is ${address}, which other machines may reach`);
    expect(server.listening).toBe(false);
  });
});

/** The number of established connections to that port of 127.0.0.1. */
function establishedAt(port: number): number {
  const local = `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const entries = readFileSync("/proc/net/tcp", "utf8").trim().split("\n").slice(1);
  const fields = entries.map((line) => line.trim().split(/\s+/));
  return fields.filter(([, at, , state]) => at === local && state === "01").length;
}
