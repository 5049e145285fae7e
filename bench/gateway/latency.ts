import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { Fleet } from "../../src/index.js";
import { connectClient } from "../../src/runtime/client/connect.js";
import { claim, compare, ratio } from "../measure.js";
import { type PartProcess, startBuilt } from "./processes.js";

/**
 * Compares pings and turns of three clients on one server: the unmodified SDK through the front door, the same SDK
 * directly at the server, and the best direct client.
 */
export async function measureLatency(env: NodeJS.ProcessEnv, folder: string, model: PartProcess): Promise<void> {
  await using fleet = await Fleet.open({ env, cwd: folder });
  await fleet.servers.spawn("bench");
  const { url, token } = await fleet.clients.connectInfo("bench");
  using door = await startBuilt("door", env);
  const plain = await sdk(url, token);
  const through = await sdk(door.url, (await fleet.tokens.issue("bench")).token);
  const [address = "", port = ""] = url.split(":");
  const best = (await connectClient({ address, port: Number(port), token }, {}, AbortSignal.timeout(10_000))).client;
  const provider = { type: "openai", wireApi: "completions", baseUrl: model.url } as const;
  const config = { model: "gpt-5", provider, streaming: true };
  const sessions = {
    plain: await plain.createSession({ ...config, sessionId: "plain" }),
    through: await through.createSession({ streaming: true, sessionId: "through" }),
    best: await best.createSession({ ...config, sessionId: "best" }),
  };
  const medians = await compare(60, [
    { name: "ping, SDK directly", round: async () => void (await plain.ping()) },
    { name: "ping, SDK through the door", round: async () => void (await through.ping()) },
    { name: "ping, best direct client", round: async () => void (await best.ping()) },
    { name: "turn, SDK directly", round: async () => void (await sessions.plain.sendAndWait("hello")) },
    { name: "turn, SDK through the door", round: async () => void (await sessions.through.sendAndWait("hello")) },
    { name: "turn, best direct client", round: async () => void (await sessions.best.sendAndWait("hello")) },
  ]);
  for (const client of [plain, through, best]) await client.forceStop();
  await fleet.servers.stop([(await fleet.servers.ofUser("bench")).id], { force: true });
  const [ping, turn] = ["ping, SDK through the door", "turn, SDK through the door"];
  claim("ping, door to SDK directly", ratio(medians, ping, "ping, SDK directly"), 0.05);
  claim("turn, door to SDK directly", ratio(medians, turn, "turn, SDK directly"), 0.25);
  claim("turn, door to best direct client", ratio(medians, turn, "turn, best direct client"), 1.1);
}

async function sdk(where: string, connectionToken: string): Promise<CopilotClient> {
  const client = new CopilotClient({ connection: RuntimeConnection.forUri(where, { connectionToken }) });
  await client.start();
  return client;
}
