/**
 * Compares a turn and a ping of the fleet's client with those of the unmodified SDK, on the same server and model.
 *
 * Run: npx tsx bench/turn.ts
 */
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { Fleet } from "../src/index.js";
import { startEchoModel } from "../src/providers/echo.js";
import { claim, compare, printMachine, ratio, withState } from "./measure.js";

printMachine();
await withState(async (env) => {
  const model = await startEchoModel();
  const provider = { type: "openai", wireApi: "completions", baseUrl: model.baseUrl, apiKey: "bench" } as const;
  // The sandbox would keep the server from this model, which is not in the configuration.
  await using fleet = await Fleet.open({ env: { ...env, COPILOTFLEET_SANDBOX_MODE: "none" } });
  const fast = await fleet.clients.connect("bench");
  const { url, token } = await fleet.clients.connectInfo("bench");
  const plain = new CopilotClient({ connection: RuntimeConnection.forUri(url, { connectionToken: token }) });
  await plain.start();
  const config = { model: "gpt-5", provider, streaming: true };
  const plainSession = await plain.createSession({ ...config, sessionId: "plain" });
  const fastSession = await fleet.sessions.create({ ...config, user: "bench", sessionId: "fast" });
  const medians = await compare(40, [
    { name: "ping, SDK as it is", round: async () => void (await plain.ping()) },
    { name: "ping, fleet", round: async () => void (await fast.ping()) },
    { name: "turn, SDK as it is", round: async () => void (await plainSession.sendAndWait("hello")) },
    { name: "turn, fleet (send)", round: async () => void (await fleet.sessions.send(fastSession, "hello")) },
    { name: "turn, fleet (sendAndWait)", round: async () => void (await fastSession.sendAndWait("hello")) },
  ]);
  claim("ping", ratio(medians, "ping, fleet", "ping, SDK as it is"), 0.05);
  claim("turn by send", ratio(medians, "turn, fleet (send)", "turn, SDK as it is"), 0.35);
  claim("turn by sendAndWait", ratio(medians, "turn, fleet (sendAndWait)", "turn, SDK as it is"), 0.35);
  await plain.stop();
  await model.close();
});
