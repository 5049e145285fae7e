import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { openProxy, type ProxyEvent, type ProxyOptions } from "../../src/identity/tls/proxy.js";
import { connectClient } from "../../src/runtime/client/connect.js";
import { RawConnection } from "../../src/runtime/client/raw-connection.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const authority = new TestAuthority();
const folder = mkdtempSync(join(tmpdir(), "copilotfleet-proxy-"));
const ca = join(folder, "ca.crt");
writeFileSync(ca, authority.cert);
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const soon = () => AbortSignal.timeout(30_000);

async function open(options: ProxyOptions) {
  const events: ProxyEvent[] = [];
  const proxy = await openProxy({ ca, onEvent: (event) => events.push(event), ...options });
  onTestFinished(async () => await proxy.close());
  return { proxy, events };
}

describe("for a front door with TLS,", () => {
  let at: DoorFleet;
  let token: string;
  beforeAll(async () => {
    const { cert, key } = new CertificateFiles(folder, authority.issue());
    at = await DoorFleet.open({ config: { serve: { tls: { cert, key } } } });
    token = await at.token("alice");
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it("a proxy uses its front-door token only for clients that show the proxy's own client token", async () => {
    const { proxy, events } = await open({ to: at.url, token });
    expect(proxy.token).toMatch(/^cfp_/);
    const client = await RawClient.as(proxy.url, String(proxy.token));
    expect((await client.request("ping")).error).toBeUndefined();
    const from = at.events.length;
    for (const wrong of ["", token, `${proxy.token}x`]) {
      const refused = await RawClient.open(proxy.url);
      refused.send({ id: 1, method: "connect", params: { token: wrong } });
      expect((await refused.answerTo(1)).error).toMatchObject({ code: -32002, message: "AUTHENTICATION_FAILED" });
      await refused.end();
    }
    const hostile = ["GET / HTTP/1.1\r\n\r\n", `Content-Length: 99999\r\n\r\n`, "Content-Length: 4\r\n\r\nnull"];
    for (const bytes of hostile) {
      const refused = await RawClient.open(proxy.url);
      refused.bytes(bytes);
      await refused.end();
    }
    expect(at.events.slice(from)).toEqual([]);
    expect(events.filter(({ event }) => event === "refused")).toHaveLength(6);
  });

  it("a proxy resets the connection of a refused client that keeps sending", async () => {
    const { proxy } = await open({ to: at.url, token });
    const [host, port] = proxy.url.split(":");
    const client = connect({ host, port: Number(port), allowHalfOpen: true });
    const error = once(client, "error");
    client.resume().write("GET / HTTP/1.1\r\n\r\n");
    await once(client, "end");
    const sending = setInterval(() => client.write("more"), 100);
    onTestFinished(() => {
      clearInterval(sending);
      client.destroy();
    });
    await expect(error).resolves.toEqual([
      expect.objectContaining({ code: expect.stringMatching(/ECONNRESET|EPIPE/) }),
    ]);
  });

  it("a proxy sends nothing to a front door whose certificate it does not trust, and reports the reason", async () => {
    const { proxy, events } = await open({ to: at.url, ca: join(folder, "other.crt") }).catch(() => {
      writeFileSync(join(folder, "other.crt"), new TestAuthority("others").cert);
      return open({ to: at.url, ca: join(folder, "other.crt") });
    });
    const client = await RawClient.open(proxy.url);
    client.send({ id: 1, method: "connect", params: { token } });
    await client.end();
    expect(events).toEqual([{ event: "failed", detail: expect.stringMatching(/cannot be used: .*certificate/) }]);
  });

  it.each([
    [{ listen: "0.0.0.0:0" }, /listen is "0\.0\.0\.0:0", which other machines can reach/],
    [{ listen: "here" }, /listen is "here"/],
    [{ to: "fleet.example" }, /to is "fleet\.example"/],
    [{ to: "fleet.example:0" }, /which has the port 0/],
    [{ ca: "/none" }, /ca names the file \/none, which does not exist/],
  ])("openProxy rejects the options %j", async (options, message) => {
    await expect(openProxy({ to: at.url, ...options })).rejects.toThrow(message);
  });

  it("a closing proxy disconnects its clients, and accepts no new ones", async () => {
    const { proxy } = await open({ to: at.url });
    const client = await RawClient.as(proxy.url, token);
    await proxy.close();
    await client.end();
    await expect(RawClient.open(proxy.url)).rejects.toThrow();
  });

  it("the fleet's own clients connect without a proxy, and do not connect if they cannot verify the certificate", async () => {
    const [address = "", port = ""] = at.url.split(":");
    const endpoint = { address, port: Number(port), token, tls: { ca: authority.cert } };
    const { client, destroy } = await connectClient(endpoint, {}, soon());
    expect(await client.ping("hello")).toMatchObject({ message: "pong: hello" });
    destroy();
    await using raw = await RawConnection.open(endpoint, soon());
    expect(await raw.request("ping", {})).toMatchObject({ protocolVersion: 3 });
    const from = at.events.length;
    for (const wrong of [
      { ...endpoint, tls: {} },
      { ...endpoint, address: "127.0.0.2" },
    ]) {
      const refusal = { code: "FLEET_SERVER_UNREACHABLE" };
      await expect(connectClient(wrong, {}, soon())).rejects.toMatchObject(refusal);
      await expect(RawConnection.open(wrong, soon())).rejects.toMatchObject(refusal);
    }
    expect(at.events.slice(from).map(({ event }) => event)).not.toContain("connected");
  });

  it("the fleet's own clients that expect TLS send no token to a server without TLS", async () => {
    const seen: Buffer[] = [];
    const plain = createServer(
      (socket) => void socket.on("data", (bytes) => seen.push(bytes)).on("error", () => undefined),
    );
    await new Promise<void>((resolve) => plain.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void plain.close());
    const { port } = plain.address() as { port: number };
    const endpoint = { address: "127.0.0.1", port, token: "canary-token", tls: { ca: authority.cert } };
    const limit = () => AbortSignal.timeout(1_000);
    await expect(RawConnection.open(endpoint, limit())).rejects.toThrow();
    await expect(connectClient(endpoint, {}, limit())).rejects.toThrow();
    expect(seen.length).toBeGreaterThan(0);
    expect(Buffer.concat(seen).toString("latin1")).not.toContain("canary-token");
  });
});

describe("between a client and a server with TLS,", () => {
  /** Both ends of a connection through a proxy. */
  async function pair(): Promise<[client: Socket, far: Socket]> {
    const server = createTlsServer({ ...authority.issue(), allowHalfOpen: true });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    const { proxy } = await open({ to: `127.0.0.1:${port}` });
    const [host, local] = proxy.url.split(":");
    const client = connect({ host, port: Number(local), allowHalfOpen: true });
    const [far] = (await once(server, "secureConnection")) as [Socket];
    onTestFinished(() => {
      for (const socket of [client, far]) socket.on("error", () => undefined).destroy();
      server.close();
    });
    return [client, far];
  }

  it("a proxy does not fill the memory when one side sends and the other side does not read", async () => {
    const [client, far] = await pair();
    client.pause();
    const chunk = Buffer.alloc(1024 * 1024, 1);
    let taken = 0;
    for (; taken < 200 && far.write(chunk); taken++) await new Promise((resolve) => setImmediate(resolve));
    let waited = 0;
    for (; taken < 200 && waited < 20; waited++) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      while (taken < 200 && !far.writableNeedDrain && far.write(chunk)) taken++;
    }
    // The buffers of the kernel and of both sockets hold some megabytes.
    expect(taken).toBeLessThan(100);
    let got = 0;
    far.end();
    client.on("data", (bytes) => {
      got += bytes.length;
    });
    client.resume();
    await once(client, "end");
    expect(got).toBeGreaterThanOrEqual(taken * chunk.length);
  });
});
