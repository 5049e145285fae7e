import { approveAll } from "@github/copilot-sdk";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { RawConnection } from "../../src/runtime/client/raw-connection.js";
import { provenEndpoint } from "../../src/runtime/process/probe.js";
import { RpcClient } from "../../src/runtime/wire/rpc-client.js";
import { startScriptedModel } from "../fixtures/models/scripted-model.js";
import { startWireModel } from "../fixtures/models/wire-model.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const chosenIn = ({ result }: { result?: unknown }) =>
  (result as { modelState: { modelId?: string } }).modelState.modelId;

it("the front door names no model to the runtime when no provider and no model are configured", async () => {
  await using at = await DoorFleet.open({ config: { provider: null } });
  const client = await RawClient.as(at.url, await at.token("alice"));
  expect(chosenIn(await client.request("session.create", { sessionId: "left-open" }))).toBeUndefined();
  expect(chosenIn(await client.request("session.create", { sessionId: "named", model: "gpt-4.1" }))).toBe("gpt-4.1");
  const session = await at.fleet.sessions.create({ user: "alice", onPermissionRequest: approveAll });
  expect((await session.rpc.model.getCurrent()).modelId).toBeUndefined();
});

it("the front door names the default model to the runtime when a provider is configured", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  expect(chosenIn(await client.request("session.create", { sessionId: "left-open" }))).toBe("gpt-5");
  const session = await at.fleet.sessions.create({ user: "alice" });
  expect((await session.rpc.model.getCurrent()).modelId).toBe("gpt-5");
});

it("the front door forwards the runtime's requests for bearer tokens to the client that set the provider", async () => {
  await using model = await startWireModel("entra-1");
  await using at = await DoorFleet.open({ config: { provider: null, session: { host: "owner" } } });
  const client = await at.client("alice");
  const asked: string[] = [];
  const bearerTokenProvider = async ({ sessionId }: { sessionId: string }) => {
    asked.push(sessionId);
    return model.key;
  };
  const provider = { type: "azure" as const, baseUrl: model.origin, bearerTokenProvider };
  const session = await client.createSession({
    model: "m",
    streaming: true,
    provider,
    onPermissionRequest: approveAll,
  });
  expect((await session.sendAndWait({ prompt: "one" }))?.data.content).toBe("pong");
  model.key = "entra-2";
  expect((await session.sendAndWait({ prompt: "two" }))?.data.content).toBe("pong");
  expect(model.requests.map(({ headers }) => headers.authorization)).toEqual(["Bearer entra-1", "Bearer entra-2"]);
  expect(asked).toEqual([session.sessionId, session.sessionId]);
});

it("a client's turn succeeds after another Fleet object ran a turn in the session and was closed", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId: "shared" });
  await client.turnOk("shared", "one");
  const provider = { type: "openai" as const, baseUrl: at.model.baseUrl, apiKey: { env: "MODEL_KEY" } };
  const other = await Fleet.open({ env: at.env, cwd: at.folder, config: { ports: at.ports, provider } });
  await other.sessions.use("shared", "two", { user: "alice" });
  await other.close();
  await client.turnOk("shared", "three");
  expect(at.model.shown("three")).toBe(1);
});

it("the front door gives a server the provider once, and again only after another client loads the session", async () => {
  await using at = await DoorFleet.open({ config: { session: { host: "owner" } } });
  const ask = vi.spyOn(RpcClient.prototype, "ask");
  onTestFinished(() => ask.mockRestore());
  const given = () => ask.mock.calls.filter(([method]) => method === "session.options.update").length;
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId: "kept" });
  for (const prompt of ["one", "two", "three"]) await client.turnOk("kept", prompt);
  expect(given()).toBe(1);
  // This client brings its own provider. Its turns do not use the provider of the fleet.
  await using own = await startScriptedModel();
  const other = await RawClient.as(at.url, await at.token("alice"));
  await other.requestOk("session.resume", { sessionId: "kept", provider: ownProvider(own.baseUrl) });
  await other.turnOk("kept", "four");
  expect([given(), own.shown("four"), at.model.shown("four")]).toEqual([1, 1, 0]);
  await client.turnOk("kept", "five");
  expect([given(), own.shown("five"), at.model.shown("five")]).toEqual([2, 0, 1]);
  await client.turnOk("kept", "six");
  expect([given(), at.model.shown("six")]).toEqual([2, 1]);
});

describe("the front door after a change of the provider that it does not see", () => {
  it.each(["failed", "was aborted"])(
    "gives the server the fleet's provider again after a turn that %s",
    async (end) => {
      await using other = end === "failed" ? await startWireModel("another key") : await startScriptedModel();
      await using at = await DoorFleet.open();
      const { client, direct } = await withDirectClient(at, "changed");
      const baseUrl = "origin" in other ? `${other.origin}/v1` : other.baseUrl;
      await direct.request("session.options.update", { sessionId: "changed", provider: ownProvider(baseUrl) });
      const turn = client.turnOk("changed", "!hold two");
      if (!("origin" in other)) {
        await expect.poll(() => other.shown("!hold two")).toBe(1);
        await client.requestOk("session.abort", { sessionId: "changed" });
      }
      await turn;
      expect(at.model.shown("!hold two")).toBe(0);
      await client.turnOk("changed", "three");
      expect(at.model.shown("three")).toBe(1);
    },
  );

  it("gives the server the fleet's provider again after a direct client resumes the session with its own", async () => {
    await using own = await startScriptedModel();
    await using at = await DoorFleet.open();
    const { client, direct } = await withDirectClient(at, "resumed");
    await direct.request("session.resume", { sessionId: "resumed", provider: ownProvider(own.baseUrl) });
    await expect.poll(() => client.events("resumed")).toContain("session.resume");
    await client.turnOk("resumed", "two");
    expect([own.shown("two"), at.model.shown("two")]).toEqual([0, 1]);
  });

  it("gives the server the fleet's provider again after a client sets it to null", async () => {
    await using at = await DoorFleet.open();
    const { client } = await withDirectClient(at, "nulled");
    await client.requestOk("session.options.update", { sessionId: "nulled", provider: null });
    await client.turnOk("nulled", "two");
    expect(at.model.shown("two")).toBe(1);
  });
});

it("a session of the library uses the fleet's provider after a direct client resumes it with its own", async () => {
  await using own = await startScriptedModel();
  await using at = await DoorFleet.open();
  const session = await at.fleet.sessions.create({ user: "alice", sessionId: "library" });
  const resumed = new Promise((resolve) => session.on("session.resume", resolve));
  await at.fleet.sessions.send(session, "one");
  const direct = await directConnection(at);
  await direct.request("session.resume", { sessionId: "library", provider: ownProvider(own.baseUrl) });
  await resumed;
  await at.fleet.sessions.send(session, "two");
  expect([own.shown("two"), at.model.shown("two")]).toEqual([0, 1]);
});

const ownProvider = (baseUrl: string) => ({ type: "openai", baseUrl, wireApi: "completions", apiKey: "its-own-key" });

/** A client of the front door whose session had a turn, and a connection to the server of that session. */
async function withDirectClient(at: DoorFleet, sessionId: string) {
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId });
  await client.turnOk(sessionId, "one");
  return { client, direct: await directConnection(at) };
}

/** Connects to the only server, as a client can that knows the server's token. */
async function directConnection(at: DoorFleet): Promise<RawConnection> {
  const [server] = Object.values((await at.store.registry.read()).servers);
  if (server === undefined) throw new Error("no server runs");
  const connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(30_000));
  onTestFinished(async () => await connection[Symbol.asyncDispose]());
  return connection;
}

it("the front door invalidates a session's model gateway token when the client leaves the session", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId: "left" });
  const token = async () => (await at.provider.of("left", {}))?.apiKey;
  const first = await token();
  expect(await token()).toBe(first);
  await client.requestOk("session.detach", { sessionId: "left" });
  await expect.poll(async () => (await token()) === first).toBe(false);
});
