import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TLSSocket } from "node:tls";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const authority = new TestAuthority();
const trusted = { ca: authority.cert };
const folder = mkdtempSync(join(tmpdir(), "copilotfleet-tls-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let names = 0;
function certificate(): CertificateFiles {
  return new CertificateFiles(folder, authority.issue(), `door-${names++}`);
}

/** A PROXY protocol v2 header for a client at 203.0.113.7. */
const PROXY_HEADER = Buffer.concat([
  Buffer.from("0d0a0d0a000d0a515549540a", "hex"),
  Buffer.from("2111000c", "hex"),
  Buffer.from([203, 0, 113, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x10, 0xcc]),
]);

describe("a front door with serve.tls", () => {
  let at: DoorFleet;
  let token: string;
  beforeAll(async () => {
    const { cert, key } = certificate();
    at = await DoorFleet.open({ config: { serve: { tls: { cert, key } } } });
    token = await at.token("alice");
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it("serves clients over TLS 1.2 and TLS 1.3, and reports their addresses", async () => {
    for (const version of ["TLSv1.2", "TLSv1.3"] as const) {
      const options = { ...trusted, minVersion: version, maxVersion: version };
      const client = await (await RawClient.openTls(at.url, options)).signedOn(token);
      expect((client.socket as TLSSocket).getProtocol()).toBe(version);
      expect((await client.requestOk("ping")).result).toMatchObject({ protocolVersion: 3 });
    }
    expect(at.events).toContainEqual({ event: "connected", address: "127.0.0.1", user: "alice" });
  });

  it("logs failed handshakes of clients that reject its certificate or its name, or have only old TLS", async () => {
    const old = { ...trusted, maxVersion: "TLSv1.1", minVersion: "TLSv1" } as const;
    for (const options of [{}, old, { ...trusted, servername: "other.example" }])
      await expect(RawClient.openTls(at.url, options)).rejects.toThrow();
    const refused = () => at.events.filter(({ event }) => event === "tls-refused").length;
    await eventually("the log", () => refused() === 3);
  });

  it("refuses a client without TLS at once, and gives the reason in its answer and in an event", async () => {
    const from = at.events.length;
    const plain = await RawClient.open(at.url);
    using watch = new Stopwatch();
    plain.send({ id: 1, method: "connect", params: { token } });
    await plain.end();
    expect(watch.ms).toBeLessThan(3_000);
    expect(plain.received).toMatchObject([{ id: null, error: { message: expect.stringContaining("only TLS") } }]);
    expect(at.events.slice(from)).toEqual([
      {
        event: "tls-refused",
        address: "127.0.0.1",
        detail: "The client does not use TLS. If it sent a token, revoke the token.",
      },
    ]);
  });

  it("closes a connection that sends junk in place of a TLS handshake, and logs the reason", async () => {
    const from = at.events.length;
    const client = await RawClient.open(at.url);
    client.bytes(Buffer.concat([Buffer.from([0x16, 0x03, 0x01]), Buffer.alloc(200, 0xff)]));
    await client.end();
    expect(at.events.slice(from)).toEqual([
      { event: "tls-refused", address: "127.0.0.1", detail: expect.stringMatching(/^The TLS handshake failed: .+\.$/) },
    ]);
  });

  it("keeps at most 2,048 unfinished handshakes, and closes the oldest first", async () => {
    const { cert, key } = certificate();
    // The clock stands still, so that no handshake reaches its time limit.
    await using at = await DoorFleet.open({ config: { serve: { tls: { cert, key } } }, clock: new TestClock() });
    const token = await at.token("alice");
    const first = await (await RawClient.openTls(at.url, trusted)).signedOn(token);
    const strangers: RawClient[] = [];
    for (let round = 0; round < 16; round++)
      strangers.push(...(await Promise.all(Array.from({ length: 128 }, async () => await RawClient.open(at.url)))));
    const client = await (await RawClient.openTls(at.url, trusted)).signedOn(token);
    expect((await client.request("ping")).error).toBeUndefined();
    await eventually("the end of the oldest", () => strangers.some(({ closed }) => closed));
    expect(strangers[0]?.closed).toBe(true);
    expect(strangers.filter(({ closed }) => closed).length).toBeLessThan(100);
    expect((await first.request("ping")).error).toBeUndefined();
    for (const { socket } of strangers) socket.destroy();
  });
});

describe("the front door, with its time limit for a TLS handshake,", () => {
  it("closes a connection 10 s after it opened if its TLS handshake or its sign-on is incomplete", async () => {
    const { cert, key } = certificate();
    const clock = new TestClock();
    await using at = await DoorFleet.open({ config: { serve: { tls: { cert, key } } }, clock });
    const [silent, late] = [await RawClient.open(at.url), await RawClient.open(at.url)];
    // Connections are accepted in order, so this one is signed on after the others were accepted.
    const client = await (await RawClient.openTls(at.url, trusted)).signedOn(await at.token("alice"));
    await clock.advance(4_000, 0);
    const shaken = await RawClient.openTls(at.url, { ...trusted, socket: late.socket });
    await clock.advance(5_999, 0);
    await client.requestOk("ping");
    expect([silent.closed, shaken.closed]).toEqual([false, false]);
    await clock.advance(1, 0);
    await Promise.all([silent.end(), shaken.end()]);
    const ends = () => at.events.map(({ event }) => event).toSorted();
    await eventually("both events", () => ends().length === 3);
    expect(ends()).toEqual(["closed", "connected", "tls-refused"]);
    await client.requestOk("ping");
  });
});

describe("a front door with serve.tls.clientCa", () => {
  const others = new TestAuthority("another authority");
  let at: DoorFleet;
  let token: string;
  beforeAll(async () => {
    const { cert, key } = certificate();
    const clientCa = join(folder, "clients.crt");
    const clients = new TestAuthority("clients");
    writeFileSync(clientCa, clients.cert);
    good = clients.issue({ names: ["alice"] });
    at = await DoorFleet.open({ config: { serve: { tls: { cert, key, clientCa } } } });
    token = await at.token("alice");
  });
  let good: { cert: string; key: string };
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it.each(["TLSv1.2", "TLSv1.3"] as const)(
    "admits only clients with a certificate from the authority of serve.tls.clientCa, with %s",
    async (version) => {
      const versions = { ...trusted, minVersion: version, maxVersion: version };
      const client = await (await RawClient.openTls(at.url, { ...versions, ...good })).signedOn(token);
      expect((await client.request("ping")).error).toBeUndefined();
      for (const own of [{}, others.issue()]) {
        const from = at.events.length;
        // With TLS 1.3, the client learns of the refusal only after its own part of the handshake.
        const refused = await RawClient.openTls(at.url, { ...versions, ...own }).catch(() => null);
        refused?.send({ id: 1, method: "connect", params: { token } });
        await refused?.end();
        expect(refused?.received ?? []).toEqual([]);
        await eventually("the log", () => at.events.slice(from).some(({ event }) => event === "tls-refused"));
        expect(at.events.slice(from).map(({ event }) => event)).not.toContain("connected");
      }
    },
  );
});

describe("a front door with serve.tls and serve.proxyProtocol", () => {
  it("reads the PROXY header before the TLS handshake, whether it arrives in pieces or all at once", async () => {
    const { cert, key } = certificate();
    await using at = await DoorFleet.open({ config: { serve: { tls: { cert, key }, proxyProtocol: true } } });
    const token = await at.token("alice");
    const [host = "", port = ""] = at.url.split(":");
    for (const isSlow of [false, true]) {
      const socket = connect({ host, port: Number(port), noDelay: true });
      if (isSlow) {
        for (const byte of PROXY_HEADER) {
          socket.write(Buffer.from([byte]));
          await new Promise((resolve) => setImmediate(resolve));
        }
      } else socket.write(PROXY_HEADER);
      const client = await RawClient.openTls(at.url, { ...trusted, socket, servername: "localhost" });
      await client.signedOn(token);
    }
    const connected = at.events.filter(({ event }) => event === "connected");
    expect(connected).toEqual(Array(2).fill({ event: "connected", address: "203.0.113.7", user: "alice" }));
    await expect(RawClient.openTls(at.url, trusted)).rejects.toThrow();
    expect(at.events).toContainEqual(expect.objectContaining({ event: "protocol-error" }));
  });
});

/** How many times the test replaces the certificates. */
const ROUNDS = process.env.SOAK === undefined ? 20 : 100;

describe("when the files of serve.tls are replaced,", () => {
  const serialOf = ({ socket }: RawClient) => (socket as TLSSocket).getPeerX509Certificate()?.serialNumber;

  it("the front door uses the new certificate for new connections, and keeps 50 connected clients", async () => {
    const files = certificate();
    const clock = new TestClock();
    await using at = await DoorFleet.open({
      clock,
      config: { serve: { tls: { cert: files.cert, key: files.key } }, limits: { default: { connections: 100 } } },
    });
    const token = await at.token("alice");
    const connectOne = async () => await (await RawClient.openTls(at.url, trusted)).signedOn(token);
    const clients = await Promise.all(Array.from({ length: 50 }, connectOne));
    let before = serialOf(clients[0] as RawClient);
    for (let round = 0; round < ROUNDS; round++) {
      files.replace(authority.issue());
      await clock.advance(2_000);
      const probe = await RawClient.openTls(at.url, trusted);
      expect(serialOf(probe)).not.toBe(before);
      before = serialOf(probe);
      probe.socket.destroy();
      if (round % 10 === 0) for (const client of clients) await client.requestOk("ping");
    }
    for (const client of clients) await client.requestOk("ping");
    expect(clients.filter(({ closed }) => closed)).toEqual([]);
    expect(at.events.filter(({ event }) => event === "certificate-replaced")).toHaveLength(ROUNDS);
  });

  it("the front door keeps its certificate if the new key does not fit, and names the file in an event", async () => {
    const files = certificate();
    const clock = new TestClock();
    await using at = await DoorFleet.open({ clock, config: { serve: { tls: { cert: files.cert, key: files.key } } } });
    const before = serialOf(await RawClient.openTls(at.url, trusted));
    files.replace({ cert: authority.issue().cert, key: authority.issue().key });
    await clock.advance(10_000);
    expect(serialOf(await RawClient.openTls(at.url, trusted))).toBe(before);
    expect(at.events.filter(({ event }) => event === "certificate-problem")).toEqual([
      {
        event: "certificate-problem",
        address: "",
        detail: expect.stringMatching(/keeps its certificate.*serve\.tls\.key names the file .*, which does not fit/),
      },
    ]);
    const expired = new Date(Date.now() - 60_000);
    files.replace(authority.issue({ to: expired }));
    await clock.advance(2_000);
    expect(at.events.map(({ detail }) => detail)).toContainEqual(
      expect.stringMatching(/\(serve\.tls\.cert\) expired on/),
    );
  });
});
