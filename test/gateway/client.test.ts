import { describeClient, OPEN_TO_CLIENTS } from "./client-suite.js";
import { DoorFleet, MODEL_KEY } from "./harness.js";

/** One suite twice: what a client can do at a bare server it can do at the front door. */
describeClient("directly", async () => {
  const fleet = await DoorFleet.open({ from: 16_500, to: 16_519 });
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
  const fleet = await DoorFleet.open({ from: 16_520, to: 16_539 }, { config: { session: OPEN_TO_CLIENTS } });
  return {
    connect: async () => await fleet.client("alice"),
    settings: {},
    [Symbol.asyncDispose]: async () => await fleet[Symbol.asyncDispose](),
  };
});
