import { createServer, type Socket } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import type { HostRecord } from "../../src/base/host.js";
import { Dispatcher } from "../../src/door/client/dispatcher.js";
import { checkSameProtocol, clientProtocol, PROTOCOLS, type Protocol } from "../../src/door/policy/methods.js";
import { Connector, PeerDialer } from "../../src/door/routing/connector.js";
import type { ClientState } from "../../src/door/state/client-state.js";
import { Links, RequestLines } from "../../src/door/state/links.js";
import type { Identity } from "../../src/identity/identity.js";
import type { SignOn } from "../../src/identity/sign-on.js";
import { SUPPORTED_VERSIONS } from "../../src/runtime/launch/versions.js";
import { encodeMessage } from "../../src/runtime/wire/frames.js";
import type { Store } from "../../src/store/ports.js";
import { MessageReader } from "../fixtures/sessions/message-reader.js";

const three = clientProtocol(3);
/** An invented version 4, which has another name for the method `session.getForeground`. */
const four: Protocol = {
  ...three,
  version: 4,
  handlingOf: (method) =>
    three.handlingOf(method === "foreground.get" ? "session.getForeground" : "a method that nobody knows"),
  isKnownMethod: (method) => method === "foreground.get",
};
const both = new Map([...PROTOCOLS, [4, four]]);

it("the front door has tables for each protocol version that the fleet supports", () => {
  expect([...PROTOCOLS.keys()]).toEqual([...SUPPORTED_VERSIONS]);
  for (const [version, protocol] of PROTOCOLS) expect(protocol.version).toBe(version);
});

it("the front door speaks the protocol version that a client names in connect, or version 3 if the client names none", () => {
  expect(clientProtocol(4, both)).toBe(four);
  expect(clientProtocol(3, both)).toBe(three);
  expect(clientProtocol(undefined, both)).toBe(three);
});

it("the front door names all supported versions when it refuses a client that names another version", () => {
  expect(() => clientProtocol(5, both)).toThrow(
    expect.objectContaining({
      code: "FLEET_PROTOCOL_UNSUPPORTED",
      message: expect.stringMatching(/^This front door speaks version 3 and 4 .*; the client speaks version 5\. /),
      suggestions: ["npm install @github/copilot-sdk@1", "npm install @github/copilot-sdk@2"],
    }),
  );
});

it.each([
  ["3", three, "session.getForeground", "foreground.get"],
  ["4", four, "foreground.get", "session.getForeground"],
])(
  "the front door checks a client's requests against the table of the client's protocol version %s",
  async (_, protocol, allowed, unknown) => {
    expect(await outcomeOf(protocol, allowed)).not.toBeInstanceOf(FleetError);
    expect(await outcomeOf(protocol, unknown)).toMatchObject({
      code: "FLEET_METHOD_UNKNOWN",
      message: expect.stringContaining(unknown),
    });
  },
);

it("the front door refuses to connect a client to a server of another protocol version, and names a fitting SDK", async () => {
  const { port, closed } = await serverSpeaking(3);
  const hello = { protocolVersion: 4 };
  const isStillGood = async () => await Promise.resolve(true);
  const signOn = { isStillGood, gitHubTokenOf: () => null } as unknown as SignOn;
  const settings = { tls: { cert: null, key: null, ca: null } };
  const tokens = { create: async () => undefined, delete: async () => true };
  const store = { tokens, now: async () => await Promise.resolve(0) } as unknown as Store;
  const dialer = new PeerDialer("here", settings, hello, { user: "ann" } as Identity, {
    signOn,
    store,
    config: { provider: null },
  });
  const links = new Links();
  const socket = { cork: () => undefined, uncork: () => undefined };
  const state = { user: "ann", protocol: four, links, socket } as unknown as ClientState;
  const connector = new Connector(state, hello, dialer);
  const host = { name: "there", door: `127.0.0.1:${port}` } as HostRecord;
  await expect(connector.toPeer(host, new AbortController().signal)).rejects.toMatchObject({
    code: "FLEET_PROTOCOL_UNSUPPORTED",
    message: expect.stringMatching(
      /speaks version 3 .*; the client speaks version 4\. Version 3 is spoken by SDK 1\.x/,
    ),
    suggestions: ["npm install @github/copilot-sdk@1"],
  });
  expect(links.all()).toEqual([]);
  await closed;
});

it("the front door names SDK 2.x to a client of protocol version 3 whose server speaks version 4", () => {
  expect(() => checkSameProtocol(three, four)).toThrow(
    expect.objectContaining({
      code: "FLEET_PROTOCOL_UNSUPPORTED",
      message: expect.stringMatching(
        /speaks version 4 .*; the client speaks version 3\. Version 4 is spoken by SDK 2\.x/,
      ),
      suggestions: ["npm install @github/copilot-sdk@2"],
    }),
  );
});

/** The result of a request that needs no server, or the error with which it is refused. */
async function outcomeOf(protocol: Protocol, method: string): Promise<unknown> {
  return await new Promise((resolve) => {
    const requests = {
      begin: () => true,
      open: 0,
      openBytes: 0,
      reply: (_request: unknown, result: unknown) => resolve(result),
      refuse: (_request: unknown, error: unknown) => resolve(error),
    };
    const state = {
      protocol,
      requests,
      lines: new RequestLines({ looksAgain: false }),
      share: { overRequests: null, overBytes: null },
      door: { config: { serve: { maxFrameBytes: 1024 } } },
      report: { event: () => undefined },
      gone: new AbortController().signal,
    } as unknown as ClientState;
    const unused = {} as never;
    const dispatcher = new Dispatcher(state, unused, unused, unused);
    dispatcher.take({ kind: "request", id: 1, method, params: {}, bytes: 10 });
  });
}

/** Answers every request with a protocol version. `closed` resolves when its first client has hung up. */
async function serverSpeaking(protocolVersion: number): Promise<{ port: number; closed: Promise<void> }> {
  const sockets = new Set<Socket>();
  let onClosed: () => void = () => undefined;
  const closed = new Promise<void>((resolve) => {
    onClosed = resolve;
  });
  const server = createServer((socket) => {
    sockets.add(socket);
    const decoder = new MessageReader();
    socket.on("data", (chunk) => {
      for (const { id } of decoder.push(chunk) as { id: unknown }[])
        socket.write(encodeMessage({ id, result: { protocolVersion } }));
    });
    socket.on("error", () => undefined);
    socket.once("close", () => onClosed());
  });
  await new Promise<void>((resolve) => server.listen({ host: "127.0.0.1", port: 0 }, resolve));
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("the server has no port");
  return { port: address.port, closed };
}
