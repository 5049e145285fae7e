import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { approveAll, type CopilotClientOptions } from "@github/copilot-sdk";
import { expect, it } from "vitest";
import { openProxy } from "../../src/identity/tls/proxy.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";
import { describeClient, describeRequestHandler, OPEN_TO_CLIENTS } from "./client-suite.js";
import { DoorFleet, MODEL_KEY } from "./harness.js";

/** Runs one suite at a bare server and at the front door, because a client must be able to do the same at both. */
describeClient("directly", async () => {
  const fleet = await DoorFleet.open({ config: { session: OPEN_TO_CLIENTS } });
  await fleet.fleet.servers.spawn("alice");
  const { url, token } = await fleet.fleet.clients.connectInfo("alice");
  const provider = {
    type: "openai" as const,
    wireApi: "completions" as const,
    baseUrl: fleet.model.baseUrl,
    apiKey: MODEL_KEY,
  };
  return {
    connect: async () => await fleet.connect(url, token),
    settings: { provider, model: "gpt-5" },
    [Symbol.asyncDispose]: async () => await fleet[Symbol.asyncDispose](),
  };
});

describeClient("through-the-door", async () => {
  const fleet = await DoorFleet.open({ config: { session: OPEN_TO_CLIENTS } });
  return {
    connect: async () => await fleet.client("alice"),
    settings: {},
    [Symbol.asyncDispose]: async () => await fleet[Symbol.asyncDispose](),
  };
});

it("a client connected through-the-door gets its reply after another of the user's clients has resumed the session", async () => {
  await using fleet = await DoorFleet.open({ config: { session: OPEN_TO_CLIENTS } });
  const session = await (await fleet.client("alice")).createSession({ onPermissionRequest: approveAll });
  await session.sendAndWait("first");
  await (await fleet.client("alice")).resumeSession(session.sessionId, { onPermissionRequest: approveAll });
  // The front door looks for unloaded sessions twice during this turn.
  expect((await session.sendAndWait("!delay 4500 second", 20_000))?.data.content).toContain("second");
  expect(fleet.events.filter(({ event }) => event === "session-unloaded")).toEqual([]);
});

/** A front door with TLS, and a proxy to which SDKs connect. */
async function behindProxy(config: object) {
  const authority = new TestAuthority();
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-tls-"));
  const { cert, key } = new CertificateFiles(folder, authority.issue());
  const ca = join(folder, "ca.crt");
  await writeFile(ca, authority.cert);
  const fleet = await DoorFleet.open({ config: { ...config, serve: { tls: { cert, key } } } });
  const token = await fleet.token("alice");
  const proxy = await openProxy({ to: fleet.url, ca });
  return {
    connect: async (options?: CopilotClientOptions) => await fleet.connect(proxy.url, token, options),
    [Symbol.asyncDispose]: async () => {
      await fleet[Symbol.asyncDispose]();
      await proxy.close();
      await rm(folder, { recursive: true });
    },
  };
}

const throughProxy = async () => {
  const { connect, ...rest } = await behindProxy({ session: OPEN_TO_CLIENTS });
  return { connect: async () => await connect(), settings: {}, ...rest };
};
describeClient("through-a-proxy-and-tls", throughProxy, { isPassedOn: true });

const WITHOUT_CREDENTIALS = { config: { provider: null, session: OPEN_TO_CLIENTS } };

describeRequestHandler("directly", async () => {
  const fleet = await DoorFleet.open(WITHOUT_CREDENTIALS);
  await fleet.fleet.servers.spawn("alice");
  const { url, token } = await fleet.fleet.clients.connectInfo("alice");
  return {
    connect: async (options) => await fleet.connect(url, token, options),
    [Symbol.asyncDispose]: async () => await fleet[Symbol.asyncDispose](),
  };
});

describeRequestHandler("through-the-door", async () => {
  const fleet = await DoorFleet.open(WITHOUT_CREDENTIALS);
  const token = await fleet.token("alice");
  return {
    connect: async (options) => await fleet.connect(fleet.url, token, options),
    [Symbol.asyncDispose]: async () => await fleet[Symbol.asyncDispose](),
  };
});

describeRequestHandler("through-a-proxy-and-tls", async () => await behindProxy(WITHOUT_CREDENTIALS.config));
