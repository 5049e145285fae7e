import { describe, expect, it } from "vitest";
import type { Provider } from "../../src/config/schema.js";
import { FleetError } from "../../src/errors.js";
import { ModelProvider } from "../../src/models/provider.js";

const remote = {
  type: "openai",
  baseUrl: "https://a.example/v1",
  apiKeyEnv: "A_KEY",
  apiKeyFile: null,
  apiKeyCommand: null,
  wireApi: "responses",
} as const;

async function refused(answer: Promise<unknown>): Promise<FleetError> {
  const error: unknown = await answer.then(
    () => new Error("nothing was refused"),
    (reason: unknown) => reason,
  );
  if (!(error instanceof FleetError)) throw error;
  return error;
}

const get = async (provider: Provider | null, env: Record<string, string | undefined>) => {
  await using model = new ModelProvider(provider, env);
  return await model.get();
};

describe("the key of a provider", () => {
  it("ModelProvider reads the key from the variable that apiKeyEnv names", async () => {
    expect(await get(remote, { A_KEY: "sk-1" })).toEqual({
      type: "openai",
      baseUrl: "https://a.example/v1",
      wireApi: "responses",
      apiKey: "sk-1",
    });
  });

  it("ModelProvider gives no key if no source is set, and no wireApi for a provider type that has only one", async () => {
    expect(await get({ ...remote, type: "anthropic", apiKeyEnv: null }, {})).toEqual({
      type: "anthropic",
      baseUrl: "https://a.example/v1",
    });
    expect(await get(null, {})).toBeNull();
  });

  it.each([
    ["missing", undefined, "is not set"],
    ["empty", "", "is empty"],
    ["with a blank", "sk canary", "contains spaces"],
    ["with a line break", "sk-canary\nX-Evil: 1", "contains spaces"],
  ])("ModelProvider refuses a model key (%s), and never shows the key", async (_, key, fault) => {
    const error = await refused(get(remote, { A_KEY: key }));
    expect(error).toMatchObject({ code: "FLEET_MODEL_UNCONFIGURED", exit: 3 });
    expect(error.message).toContain(`A_KEY, which provider.apiKeyEnv names for the model's key, ${fault}`);
    expect(error.message + error.suggestions.join()).not.toContain("canary");
  });
});

describe("ModelProvider", () => {
  it("ModelProvider starts the echo model once, and its disposal stops the model for good", async () => {
    const model = new ModelProvider({ type: "echo" }, {});
    const provider = await model.get();
    expect(await model.get()).toEqual(provider);
    const url = `${provider?.baseUrl}/models`;
    expect((await fetch(url)).status).toBe(200);
    await model[Symbol.asyncDispose]();
    await expect(fetch(url)).rejects.toThrow();
    await expect(model.get()).rejects.toMatchObject({ code: "FLEET_CLOSED" });
  });

  it("ModelProvider starts nothing for a provider other than the echo model, or without a provider", async () => {
    await using other = new ModelProvider(remote, { A_KEY: "k" });
    expect(await other.get()).toMatchObject({ apiKey: "k" });
    await using none = new ModelProvider(null, {});
    expect(await none.get()).toBeNull();
  });
});
