import { approveAll } from "@github/copilot-sdk";
import { expect, it } from "vitest";
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
