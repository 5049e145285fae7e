import { describeClient, describeRequestHandler, OPEN_TO_CLIENTS } from "./client-suite.js";
import { DoorFleet, MODEL_KEY } from "./harness.js";

/** Runs one suite at a bare server and at the front door, because a client must be able to do the same at both. */
describeClient("directly", async () => {
  const fleet = await DoorFleet.open();
  await fleet.fleet.spawn("alice");
  const { url, token } = await fleet.fleet.connectInfo("alice");
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

const WITHOUT_CREDENTIALS = { config: { provider: null, session: OPEN_TO_CLIENTS } };

describeRequestHandler("directly", async () => {
  const fleet = await DoorFleet.open(WITHOUT_CREDENTIALS);
  await fleet.fleet.spawn("alice");
  const { url, token } = await fleet.fleet.connectInfo("alice");
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
