import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { TLSSocket } from "node:tls";
import { afterAll, describe, expect, it, vi } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";
import { ask, TestApi } from "./harness.js";

const authority = new TestAuthority();
const ca = authority.cert;
const folder = mkdtempSync(join(tmpdir(), "copilotfleet-http-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("the address of the API", () => {
  it("an address that other machines can reach is refused without TLS, unless insecure is set", async () => {
    await using at = await TestApi.open();
    await expect(at.fleet.doors.openHttp({ listen: "0.0.0.0:0" })).rejects.toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringMatching(/^serve\.http is "0\.0\.0\.0:0", which other machines can reach/),
      suggestions: expect.arrayContaining(["COPILOTFLEET_SERVE_HTTP=127.0.0.1:4380 copilotfleet serve"]),
    });
    await using open = await TestApi.open({ config: { insecure: true } });
    await using door = await open.fleet.doors.openHttp({ listen: "0.0.0.0:0" });
    expect(door.url).toBe(`http://127.0.0.1:${door.address.port}`);
    expect((await ask(door.url, "GET", "/healthz")).status).toBe(200);
  });

  it("doors.openHttp refuses an address that is taken, and a text that is not an address", async () => {
    await using at = await TestApi.open();
    const listen = `127.0.0.1:${at.door.address.port}`;
    await expect(at.fleet.doors.openHttp({ listen })).rejects.toMatchObject({ code: "FLEET_ADDRESS_TAKEN" });
    await expect(at.fleet.doors.openHttp({ listen: "nowhere" })).rejects.toMatchObject({ code: "FLEET_USAGE_INVALID" });
  });

  it("the API keeps idle connections longer than proxies do, so no request reaches a closing connection", async () => {
    await using at = await TestApi.open();
    const { headers } = await fetch(`${at.door.url}/healthz`);
    expect(headers.get("keep-alive")).toBe("timeout=65");
  });

  it("with serve.tls, the API refuses plain HTTP and foreign host names, and reloads its certificate", async () => {
    const files = new CertificateFiles(folder, authority.issue({ names: ["localhost", "127.0.0.1", "fleet.example"] }));
    const tls = { cert: files.cert, key: files.key };
    await using at = await TestApi.open({ config: { serve: { tls } } });
    const token = await at.token("alice");
    expect(at.door.url).toMatch(/^https:/);
    for (const host of ["127.0.0.1", "fleet.example"])
      expect((await at.ok("GET", "/v1/me", { token, ca, headers: { Host: host } })).json.user).toBe("alice");
    expect((await at.ask("GET", "/v1/me", { token, ca, headers: { Host: "evil.example" } })).status).toBe(403);

    const plain = connect(at.door.address.port, "127.0.0.1");
    plain.end("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    expect(await text(plain).catch(() => "")).not.toContain("200 OK");
    await eventually("the event", () => at.events.find(({ event }) => event === "tls-refused"));

    const other = new TestAuthority("another");
    files.replace(other.issue());
    await eventually("the new certificate", async () =>
      at.ask("GET", "/healthz", { ca: other.cert }).then(
        () => true,
        () => false,
      ),
    );
    expect(at.events).toContainEqual(expect.objectContaining({ event: "certificate-replaced" }));
  });
});

describe("a door that closes", () => {
  it("a closing door lets running turns end, refuses new turns with Retry-After, and answers probes", async () => {
    await using model = await startHeldModel();
    await using at = await TestApi.open({ env: { ...model.env } });
    const token = await at.token("alice");
    const { id } = (await at.ok("POST", "/v1/sessions", { token })).json.session;
    const path = `/v1/sessions/${id}/turns`;
    const running = at.ask("POST", path, { token, body: { prompt: "!hold on" } });
    await eventually("the model", () => model.held() > 0);
    const closed = at.door.close({ timeout: "60s" });
    const refused = await at.ask("POST", path, { token, body: { prompt: "new" } });
    expect({ status: refused.status, code: refused.json.code }).toEqual({ status: 503, code: "FLEET_POOL_DRAINING" });
    expect(refused.json.retryable).toBe(true);
    expect(refused.headers["retry-after"]).toMatch(/^\d+$/);
    expect((await at.ask("GET", "/readyz")).status).toBe(503);
    expect((await at.ask("GET", "/healthz")).status).toBe(200);
    expect((await at.ok("GET", `/v1/sessions/${id}`, { token })).status).toBe(200);
    model.release();
    expect((await running).json.reply).toBe("[turn 1] on");
    expect(await closed).toEqual({ cut: 0 });
    await expect(at.ask("GET", "/healthz")).rejects.toThrow(/ECONNREFUSED/);
  });

  it("a closing door cuts the turns that still run at its timeout, and reports how many it cut", async () => {
    await using model = await startHeldModel();
    await using at = await TestApi.open({ env: { ...model.env } });
    const token = await at.token("alice");
    const { id } = (await at.ok("POST", "/v1/sessions", { token })).json.session;
    const running = at
      .ask("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "!hold on" } })
      .catch(() => null);
    await eventually("the model", () => model.held() > 0);
    expect(await at.door.close({ timeout: "100ms" })).toEqual({ cut: 1 });
    expect((await running)?.status ?? 503).toBe(503);
    model.release();
  });

  it.each(["127.0.0.1", "::1"])(
    "a closing door with TLS closes connections to %s that have sent nothing",
    async (host) => {
      await using at = await secureApi();
      await withSilentClient(at, host, async (silent) => {
        // The door accepts connections in their order. So once it refuses this one, it has accepted the silent one.
        const refused = connect(at.door.address.port, host).resume();
        refused.on("error", () => undefined).end("no TLS"); // the door may reset the connection
        await eventually("the event", () => at.events.find(({ event }) => event === "tls-refused"));
        expect(silent.readyState).toBe("open");
        let isClosed = false;
        void at.door.close().then(() => (isClosed = true));
        await eventually("the end of the door", () => isClosed);
        await eventually("the end of the connection", () => silent.closed);
      });
    },
  );
});

it.each(["127.0.0.1", "::1"])(
  "with serve.tls, a connection to %s ends if its handshake takes too long",
  async (host) => {
    await using at = await secureApi();
    const { setTimeout: original } = TLSSocket.prototype;
    using shorter = vi.spyOn(TLSSocket.prototype, "setTimeout");
    shorter.mockImplementation(function (this: TLSSocket, ms, ...rest) {
      return original.call(this, Math.min(ms, 50), ...rest);
    });
    await withSilentClient(at, host, async (silent) => {
      await eventually("the end of the connection", () => silent.closed);
      expect(at.events).toMatchObject([
        { event: "tls-refused", detail: "The TLS handshake failed: TLS handshake timeout." },
      ]);
    });
  },
);

it("onRequest reports the user and the route of each request, or `unknown` for a path without a route", async () => {
  await using at = await TestApi.open();
  const token = await at.token("alice");
  await at.ok("GET", "/v1/me", { token });
  await at.ask("GET", "/v1/sessions/nothing", { token });
  await at.ask("GET", "/v1/made-up", { token });
  await at.ask("GET", "/v1/me");
  const reports = at.requests.map(({ user, method, outcome, code }) => [user, method, outcome, code]);
  expect(reports).toEqual([
    ["alice", "GET /v1/me", "answered", undefined],
    ["alice", "GET /v1/sessions/{id}", "denied", "FLEET_SESSION_NOT_FOUND"],
    ["", "unknown", "denied", "FLEET_METHOD_UNKNOWN"],
    ["", "GET /v1/me", "denied", "FLEET_TOKEN_REFUSED"],
  ]);
});

async function secureApi(): Promise<TestApi> {
  const { cert, key } = new CertificateFiles(folder, authority.issue());
  return await TestApi.open({ config: { serve: { tls: { cert, key } } } });
}

/** Runs `work` with a connection on which the client sends nothing. */
async function withSilentClient(
  { door }: TestApi,
  host: string,
  work: (silent: Socket) => Promise<void>,
): Promise<void> {
  const silent = connect(door.address.port, host).resume();
  try {
    await once(silent, "connect");
    await work(silent);
  } finally {
    silent.destroy();
  }
}
