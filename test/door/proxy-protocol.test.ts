import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readProxyHeader } from "../../src/door/wire/client-socket.js";
import { ProtocolError } from "../../src/runtime/wire/frames.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

interface Header {
  version?: number;
  family?: number;
  addresses?: Buffer;
  /** The fields behind the addresses. */
  extra?: Buffer;
}

const SIGNATURE = Buffer.from([0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
const [V2_LOCAL, V2_PROXY, V1_PROXY] = [0x20, 0x21, 0x11];
const [UNSPECIFIED, TCP4, UDP4, TCP6, UNIX] = [0x00, 0x11, 0x12, 0x21, 0x31];
const PORTS = Buffer.from([0x1f, 0x90, 0x10, 0xcc]);
const ADDRESSES_4 = Buffer.concat([Buffer.from([203, 0, 113, 7, 10, 0, 0, 1]), PORTS]);
const ADDRESSES_6 = Buffer.concat([
  Buffer.from("20010db8000000000000000000000042", "hex"),
  Buffer.from("20010db8000000000000000000000001", "hex"),
  PORTS,
]);
const EXTRA = Buffer.concat([Buffer.from([0x04, 0x01, 0x00]), Buffer.alloc(256)]);

function header({ version = V2_PROXY, family = TCP4, addresses = ADDRESSES_4, extra = Buffer.alloc(0) }: Header = {}) {
  const length = Buffer.alloc(2);
  length.writeUInt16BE(addresses.length + extra.length);
  return Buffer.concat([SIGNATURE, Buffer.from([version, family]), length, addresses, extra]);
}

describe("readProxyHeader", () => {
  it.each([
    ["IPv4", header(), "203.0.113.7"],
    ["IPv4 with extra fields", header({ extra: EXTRA }), "203.0.113.7"],
    ["IPv6", header({ family: TCP6, addresses: ADDRESSES_6 }), "2001:db8::42"],
    [
      "the proxy's own connection",
      header({ version: V2_LOCAL, family: UNSPECIFIED, addresses: Buffer.alloc(0) }),
      null,
    ],
    ["the proxy's own connection with addresses", header({ version: V2_LOCAL }), null],
  ])("readProxyHeader returns the client's address once a PROXY header for %s is complete", (_, bytes, address) => {
    const behind = Buffer.from("Content-Length: 2\r\n\r\n{}");
    for (let end = 0; end < bytes.length; end++) expect(readProxyHeader(bytes.subarray(0, end))).toBeNull();
    expect(readProxyHeader(bytes)).toEqual({ length: bytes.length, address });
    expect(readProxyHeader(Buffer.concat([bytes, behind]))).toEqual({ length: bytes.length, address });
  });

  it.each([
    ["a client's frame", Buffer.from("Content-Length: 2\r\n\r\n{}")],
    ["a header of version 1", Buffer.from("PROXY TCP4 203.0.113.7 10.0.0.1 8080 4300\r\n")],
    ["a header with another version behind the signature", header({ version: V1_PROXY })],
    ["a header with an unknown command", header({ version: 0x22 })],
    ["a header for UDP", header({ family: UDP4 })],
    ["a header for a Unix socket", header({ family: UNIX, addresses: Buffer.alloc(216) })],
    ["a header with an unspecified address family", header({ family: UNSPECIFIED })],
    ["a header that is too short for its addresses", header({ family: TCP6 })],
    ["a header of more than 4 kB", header({ extra: Buffer.alloc(4_096) })],
  ])("readProxyHeader throws a ProtocolError for %s in place of a valid PROXY header", (_, bytes) => {
    expect(() => readProxyHeader(bytes)).toThrow(ProtocolError);
  });
});

describe("a front door with serve.proxyProtocol", () => {
  let at: DoorFleet;
  let token: string;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { serve: { proxyProtocol: true } } });
    token = await at.token("alice");
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it("reports the client's address from the PROXY header, no matter how the header is split", async () => {
    for (const [bytes, address] of [
      [header({ extra: EXTRA }), "203.0.113.7"],
      [header({ family: TCP6, addresses: ADDRESSES_6 }), "2001:db8::42"],
      [header({ version: V2_LOCAL }), "127.0.0.1"],
    ] as const) {
      const from = at.events.length;
      const [whole, slow] = [await RawClient.open(at.url), await RawClient.open(at.url)];
      const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "connect", params: { token } });
      const stream = Buffer.concat([bytes, Buffer.from(`Content-Length: ${body.length}\r\n\r\n${body}`)]);
      whole.bytes(stream);
      for (const byte of stream) {
        slow.bytes(Buffer.from([byte]));
        await new Promise((resolve) => setImmediate(resolve));
      }
      for (const client of [whole, slow]) expect((await client.answerTo(1)).error).toBeUndefined();
      const connected = at.events.slice(from).filter(({ event }) => event === "connected");
      expect(connected).toEqual(Array(2).fill({ event: "connected", address, user: "alice" }));
    }
  });

  it("closes a connection without a PROXY header, and does not check its token", async () => {
    const from = at.events.length;
    const client = await RawClient.open(at.url);
    client.send({ id: 1, method: "connect", params: { token } });
    await client.end();
    expect(client.received.filter(({ id }) => id === 1)).toEqual([]);
    expect(at.events.slice(from)).toContainEqual({
      event: "protocol-error",
      address: "127.0.0.1",
      detail: "The connection begins without the header that serve.proxyProtocol requires (PROXY protocol v2).",
    });
    expect(at.events.slice(from).map(({ event }) => event)).not.toContain("connected");
  });
});

it("the front door refuses a PROXY header when serve.proxyProtocol is off", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.open(at.url);
  client.bytes(header());
  await client.end();
  expect(at.events).toContainEqual(expect.objectContaining({ event: "protocol-error", address: "127.0.0.1" }));
});
