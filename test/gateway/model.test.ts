import { approveAll } from "@github/copilot-sdk";
import { expect, it, onTestFinished, vi } from "vitest";
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
  const session = await at.fleet.createSession({ user: "alice", onPermissionRequest: approveAll });
  expect((await session.rpc.model.getCurrent()).modelId).toBeUndefined();
});

it("the front door names the default model to the runtime when a provider is configured", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  expect(chosenIn(await client.request("session.create", { sessionId: "left-open" }))).toBe("gpt-5");
  const session = await at.fleet.createSession({ user: "alice" });
  expect((await session.rpc.model.getCurrent()).modelId).toBe("gpt-5");
});

it("the front door forwards the runtime's requests for bearer tokens to the client that set the provider", async () => {
  await using model = await startWireModel("entra-1");
  await using at = await DoorFleet.open({ config: { provider: null } });
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
  const provider = { type: "openai" as const, baseUrl: at.model.baseUrl, apiKeyEnv: "MODEL_KEY" };
  const other = await Fleet.open({ env: at.env, cwd: at.folder, config: { ports: at.ports, provider } });
  await other.sessions.use("shared", "two", { user: "alice" });
  await other.close();
  await client.turnOk("shared", "three");
  expect(at.model.shown("three")).toBe(1);
});

it("the front door gives a server the provider once, and again only after another client loads the session", async () => {
  await using at = await DoorFleet.open();
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
  const provider = { type: "openai", baseUrl: own.baseUrl, wireApi: "completions", apiKey: "its-own-key" };
  await other.requestOk("session.resume", { sessionId: "kept", provider });
  await other.turnOk("kept", "four");
  expect([given(), own.shown("four"), at.model.shown("four")]).toEqual([1, 1, 0]);
  await client.turnOk("kept", "five");
  expect([given(), own.shown("five"), at.model.shown("five")]).toEqual([2, 0, 1]);
  await client.turnOk("kept", "six");
  expect([given(), at.model.shown("six")]).toEqual([2, 1]);
});

it("after a failed turn, the front door gives the server the provider again", async () => {
  await using refusing = await startWireModel("another key");
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId: "changed" });
  await client.turnOk("changed", "one");
  // Change the provider without the fleet, as a client can that knows the token of the server.
  const { servers } = await at.store.registry.read();
  const [server] = Object.values(servers);
  if (server === undefined) throw new Error("no server runs");
  await using direct = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(30_000));
  const provider = { type: "openai", baseUrl: `${refusing.origin}/v1`, wireApi: "completions", apiKey: "wrong" };
  await direct.request("session.options.update", { sessionId: "changed", provider });
  await client.turnOk("changed", "two");
  expect([refusing.requests.length > 0, at.model.shown("two")]).toEqual([true, 0]);
  await client.turnOk("changed", "three");
  expect(at.model.shown("three")).toBe(1);
});

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
