import { readFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import type { HostRecord } from "../../src/base/host.js";
import { NO_SANDBOX, type Protection, type SandboxReport } from "../../src/base/sandbox.js";
import type { Config } from "../../src/config/schema.js";
import { Dispatcher } from "../../src/door/client/dispatcher.js";
import {
  checkSameProtocol,
  clientProtocol,
  handlingOf,
  isKnownMethod,
  knownMethods,
  PROTOCOLS,
  type Protocol,
  whyRefused,
} from "../../src/door/policy/methods.js";
import { Connector, PeerDialer } from "../../src/door/routing/connector.js";
import type { ClientState } from "../../src/door/state/client-state.js";
import { Links, RequestLines } from "../../src/door/state/links.js";
import type { Identity } from "../../src/identity/identity.js";
import type { SignOn } from "../../src/identity/sign-on.js";
import { SUPPORTED_VERSIONS } from "../../src/runtime/launch/versions.js";
import { encodeMessage } from "../../src/runtime/wire/frames.js";
import { reachesHost } from "../../src/servers/admission.js";
import type { Store } from "../../src/store/store.js";
import { MessageReader } from "../fixtures/sessions/message-reader.js";
import { INSTALLED_SDK, methodsByVersion, methodsSentBy } from "../fixtures/sessions/sdk-methods.js";

describe("the table of methods", () => {
  const versions = methodsByVersion();

  it("the table of methods is compared with the SDKs from 1.0.5 to 1.0.15-preview.4", () => {
    expect([...versions.keys()].at(0)).toBe("1.0.5");
    expect([...versions.keys()].at(-1)).toBe("1.0.15-preview.4");
    for (const methods of versions.values()) expect(methods.size).toBeGreaterThan(250);
  });

  it.each([...versions, ["that is installed", methodsSentBy(INSTALLED_SDK)] as const])(
    "the table of methods has every method that the SDK %s sends",
    (_, methods) => expect([...methods].filter((method) => !isKnownMethod(method))).toEqual([]),
  );

  it("the table of methods has only methods that at least one of the SDKs sends", () => {
    const sent = new Set([...versions.values(), methodsSentBy(INSTALLED_SDK)].flatMap((methods) => [...methods]));
    expect(knownMethods().filter((method) => !sent.has(method))).toEqual([]);
  });

  it("refuses every client exactly the methods that docs/front-door.md lists as refused", () => {
    const page = readFileSync(new URL("../../docs/front-door.md", import.meta.url), "utf8");
    const section = page.slice(page.indexOf("\n## Refused methods\n"));
    const listed = [...section.matchAll(/^- `([^`]+)`$/gm)];
    const refused = knownMethods().filter((method) => method !== "connect" && handlingOf(method).handler === "refuse");
    expect(refused.length).toBeGreaterThan(50);
    expect(listed.map(([, method]) => method).sort()).toEqual(refused.sort());
  });

  it("names the SDK's option sessionFs when it refuses the method sessionFs.setProvider", () => {
    expect(whyRefused("sessionFs.setProvider")).toContain(`the SDK's option "sessionFs"`);
  });

  it.each(["runtime.shutdown", "sessionFs.setProvider", "session.provider.getEndpoint", "sessions.open"])(
    "never passes the known method %s to a server",
    (method) => expect(handlingOf(method).handler).toBe("refuse"),
  );

  it.each(["session.brandNew", "Session.Send", "session.send ", "", "__proto__", "constructor"])(
    "never passes the unknown method %j to a server",
    (method) => expect(handlingOf(method).handler).toBe("refuse"),
  );

  it("allows methods that reach files and programs only where session.host allows them", () => {
    const reaching =
      /^session\.(shell|workspaces|extensions\.(?!list)|factory|lsp|permissions\.(paths\.add|folderTrust))/;
    for (const method of knownMethods().filter((name) => reaching.test(name))) {
      const { host, handler } = handlingOf(method);
      expect(host === true || handler === "refuse", method).toBe(true);
    }
  });

  it("marks every method that can approve tools as approving, so that session.approve limits it", () => {
    const approving = /^session\.permissions\.(set|configure|modifyRules|paths\.add|folderTrust\.add|urls)/;
    const found = knownMethods().filter((name) => approving.test(name));
    expect(found.length).toBeGreaterThan(7);
    expect(found.filter((method) => handlingOf(method).approves !== true)).toEqual([]);
  });
});

const FILE = { store: { kind: "file" } };
const OPEN_REDIS = {
  store: { kind: "redis", url: "redis://127.0.0.1:6379/0" },
  storeOptions: { password: null as object | null },
};
const without = (...not: Protection[]): SandboxReport => ({ mode: "landlock", not });
const HOLDS = without("network", "process-list");

it.each([
  ["owner", NO_SANDBOX, FILE, true],
  ["owner", undefined, FILE, true],
  ["none", HOLDS, FILE, false],
  ["auto", HOLDS, FILE, true],
  ["auto", undefined, FILE, false],
  ["auto", NO_SANDBOX, FILE, false],
  ["auto", without("signals"), FILE, false],
  ["auto", without("files"), FILE, false],
  ["auto", without("processes"), FILE, false],
  ["auto", without("unix-sockets"), FILE, false],
  ["auto", HOLDS, OPEN_REDIS, false],
  ["auto", HOLDS, { ...OPEN_REDIS, storeOptions: { password: { env: "REDIS_PASSWORD" } } }, true],
] as const)("with session.host %j, sandbox %j and %j, a client may use files and programs: %j", (...given) => {
  const [host, sandbox, store, reaches] = given;
  const config = { session: { host }, provider: null, ...store } as unknown as Config;
  expect(reachesHost({ own: true, config, sandbox })).toBe(reaches);
  expect(reachesHost({ own: false, config, sandbox })).toBe(false);
});

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
