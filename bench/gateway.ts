/**
 * Measures the costs and the benefits of the front door. It compares the latency of the unmodified SDK through the door
 * and directly at the server, and of the best direct client. Through the door and directly, it also measures the turns
 * of many clients, and streams to many clients at once. It measures the memory of idle clients. The door and the model
 * run as separate processes. The benchmark and its servers end within 20 minutes.
 *
 * Run: npx tsx bench/gateway.ts [all|latency|throughput|streaming|memory] [clients sessions words rounds]
 */
import { measureLatency } from "./gateway/latency.js";
import { measureMemory } from "./gateway/memory.js";
import { type PartProcess, startPart } from "./gateway/processes.js";
import { measureStreaming } from "./gateway/streaming.js";
import { measureThroughput } from "./gateway/throughput.js";
import { printMachine, withState } from "./measure.js";

const LIMIT_MS = 20 * 60 * 1000;

const [part = "all", ...numbers] = process.argv.slice(2);
const [clients = 200, sessions = 1_000, words = 100, rounds = 3] = numbers.map(Number);
const isWanted = (name: string) => part === "all" || part === name;

/** Runs one part with its own fleet, so that the next part starts without its servers. */
async function withModel(use: (env: NodeJS.ProcessEnv, folder: string, model: PartProcess) => Promise<void>) {
  await withState(
    async (base, folder) => {
      using model = await startPart(["model"]);
      const env = {
        ...base,
        COPILOTFLEET_PROVIDER_TYPE: "openai",
        COPILOTFLEET_PROVIDER_BASE_URL: model.url,
        COPILOTFLEET_SESSION_MAX_ACTIVE: "5000",
        COPILOTFLEET_LIMITS_DEFAULT_CONNECTIONS: "null",
        COPILOTFLEET_LIMITS_TOTAL_CONNECTIONS: "null",
      };
      await use(env, folder, model);
    },
    { limitMs: LIMIT_MS / 4 },
  );
}

printMachine();
if (isWanted("latency")) await withModel(measureLatency);
if (isWanted("throughput")) await withModel(measureThroughput);
if (isWanted("streaming")) {
  const size = { clients, sessions, words, rounds };
  await withModel(async (env, folder, model) => await measureStreaming(env, folder, model, size));
}
if (isWanted("memory")) await withModel(measureMemory);
