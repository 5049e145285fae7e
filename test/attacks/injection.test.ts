import { approveAll } from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { knownMethods } from "../../src/door/policy/methods.js";
import { sessionParams } from "../../src/door/policy/settings.js";
import { DoorFleet, MODEL_KEY } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { unused } from "../fixtures/sessions/unused.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

/** The server answers these methods only after the client has answered a request from the server. */
const WAITS_FOR_CLIENT = ["session.tasks.waitForPending", "session.ui.elicitation"];

describe("the front door, in the parameters of a session,", () => {
  const config = {
    provider: null,
    auth: { githubToken: null, githubApp: null },
    session: {
      model: "gpt-5",
      maxCredits: null,
      tools: null,
      approve: "none",
      host: "none",
      infinite: { enabled: true, backgroundCompactionThreshold: 0.8 },
    },
  } as never;
  const provider = { type: "openai", baseUrl: "http://m", apiKey: "k" };
  const own = {
    config,
    own: true,
    sandbox: undefined,
    member: false,
    isolation: "per-user" as const,
    home: "/",
    provider,
    gitHubToken: null,
  };
  const record = sessionRecord("s", { model: null });

  it("adds the model, the provider with its key, and the compaction to a session that does not set them", () => {
    expect(sessionParams("session.create", { streaming: true }, record, own)).toEqual({
      sessionId: "s",
      streaming: true,
      model: "gpt-5",
      provider,
      infiniteSessions: { enabled: true, backgroundCompactionThreshold: 0.8 },
      enableFileHooks: false,
    });
    expect(sessionParams("session.resume", { sessionId: "s", model: null }, record, own)).not.toHaveProperty(
      "model",
      "gpt-5",
    );
  });

  it("does not replace a model, a provider, credentials or a compaction that the client has chosen", () => {
    const asked = { model: "mine", infiniteSessions: { enabled: false }, provider: { baseUrl: "http://mine.example" } };
    expect(sessionParams("session.create", asked, record, own)).toEqual({
      ...asked,
      sessionId: "s",
      enableFileHooks: false,
    });
    for (const credentials of [
      { providers: [asked.provider] },
      { gitHubToken: "x" },
      { gitHubTokenProviderRegistrationId: "x" },
    ]) {
      expect(sessionParams("session.create", credentials, record, own)).not.toHaveProperty("provider");
    }
  });

  it("never adds the fleet's key to the client's own provider", () => {
    const asked = { provider: { type: "openai", baseUrl: "http://evil.example" } };
    expect(JSON.stringify(sessionParams("session.create", asked, record, own))).not.toContain("apiKey");
  });

  it("adds the user's own GitHub token, and limits the tools, on a shared server without a provider", () => {
    const shared = { ...own, own: false, isolation: "shared" as const, provider: null, gitHubToken: "t" };
    expect(sessionParams("session.create", {}, record, shared)).toMatchObject({
      gitHubToken: "t",
      availableTools: ["custom:*"],
      enableFileHooks: false,
      memory: { enabled: false },
    });
    const asked = {
      availableTools: ["bash", "builtin:bash", "custom:mine"],
      enableFileHooks: true,
      memory: { enabled: true },
    };
    expect(sessionParams("session.create", asked, record, shared)).toMatchObject({
      availableTools: ["custom:mine"],
      enableFileHooks: false,
      memory: { enabled: false },
    });
  });

  it("passes the owner's system message to a server, but never a member's", () => {
    const asked = { systemMessage: { mode: "customize", sections: { environment_context: { action: "remove" } } } };
    for (const isolation of ["shared", "per-user"] as const) {
      const member = { ...own, own: false, member: true, isolation };
      expect(JSON.stringify(sessionParams("session.resume", asked, record, member))).not.toContain("systemMessage");
    }
    expect(sessionParams("session.resume", asked, record, own)).toMatchObject(asked);
  });

  it("passes the owner's credit limit to a server, but never a member's, because that could end the owner's turns", () => {
    const asked = { sessionLimits: { maxAiCredits: 30 } };
    const member = { ...own, own: false, member: true, isolation: "shared" as const };
    expect(sessionParams("session.resume", asked, record, member)).not.toHaveProperty("sessionLimits");
    expect(sessionParams("session.resume", asked, record, own)).toMatchObject(asked);
  });
});

describe.each(["per-user", "shared"] as const)("the front door, with the model's key on %s servers,", (isolation) => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { isolation } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  it("uses the model's key without revealing it to a client, whichever method the client calls", async () => {
    const sessionId = unused("s");
    const client = await RawClient.as(at.url, await at.token("alice"));
    const create = { sessionId, streaming: true, requestPermission: true };
    expect((await client.request("session.create", create)).error).toBeUndefined();
    await client.turnOk(sessionId, "hello");
    expect(at.model.keys).toEqual(new Set([`Bearer ${MODEL_KEY}`]));
    // No method may reveal the key, whatever it does with these parameters. The methods that end the session come last.
    // Send one request at a time. If all are open at once, the runtime may never answer those that end the session
    // (seen with 1.0.85, also without the front door).
    const ending = /delete|destroy|shutdown|suspend|close|detach|abort|send|create|resume/;
    const methods = knownMethods().sort((a, b) => Number(ending.test(a)) - Number(ending.test(b)));
    const asked = methods.filter((name) => !WAITS_FOR_CLIENT.includes(name));
    for (const method of asked) await client.request(method, { sessionId, name: "x", modelId: "gpt-5" });
    expect(client.received.length).toBeGreaterThan(methods.length);
    expect(JSON.stringify(client.received)).not.toContain(MODEL_KEY);
    expect(JSON.stringify(at.events)).not.toContain(MODEL_KEY);
  });

  it("refuses the methods with which a client could ask for the model's key or redirect it", async () => {
    const sessionId = unused("b");
    const client = await RawClient.as(at.url, await at.token("bob"));
    await client.requestOk("session.create", { sessionId });
    for (const [method, params] of [
      ["session.options.update", { provider: { baseUrl: "http://127.0.0.1:9" } }],
      ["session.options.update", { copilotUrl: "http://127.0.0.1:9" }],
      ["session.provider.getEndpoint", {}],
      ["llmInference.setProvider", {}],
      ["account.getCurrentAuth", {}],
      ["session.gitHubAuth.getCurrentAuthInfo", {}],
    ] as const) {
      expect(await client.request(method, { sessionId, ...params }), method).toMatchObject({
        error: { data: { code: "FLEET_METHOD_DENIED" } },
      });
    }
  });
});

it("the front door uses a client's own provider and key for a session if the client provides them", async () => {
  await using at = await DoorFleet.open({ config: { session: { host: "owner" } } });
  const client = await at.client("alice");
  const provider = {
    type: "openai" as const,
    wireApi: "completions" as const,
    baseUrl: at.model.baseUrl,
    apiKey: "my-own-key",
  };
  const session = await client.createSession({ onPermissionRequest: approveAll, provider, model: "gpt-5" });
  expect((await session.sendAndWait("hi"))?.data.content).toBe("you said: hi");
  expect(at.model.keys).toEqual(new Set(["Bearer my-own-key"]));
});
