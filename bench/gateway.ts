/**
 * Measures the costs and the benefits of the front door. It compares the latency of the unmodified SDK through the door
 * with that of the same SDK directly at the server, and with that of the best direct client. It compares the turns of
 * many clients, and streams to many clients at once, through the door and directly. It measures the memory of idle
 * clients. The door and the model run as separate processes. Each measurement and its servers end within 15 minutes.
 *
 * Run: npm run build && npx tsx bench/gateway.ts [all|latency|throughput|streaming|memory] [clients sessions words
 * rounds]
 */
import { measureLatency } from "./gateway/latency.js";
import { measureMemory } from "./gateway/memory.js";
import { measureStreaming } from "./gateway/streaming.js";
import { measureThroughput } from "./gateway/throughput.js";
import { withModel } from "./gateway/with-model.js";
import { printMachine } from "./measure.js";

/** How long each part may take. */
const LIMIT_MS = 15 * 60 * 1000;
/** The limits without the model gateway, and with it. */
const WITHOUT_KEY = { minThroughput: 0.95, maxDoorMs: 1 };
const WITH_KEY = { minThroughput: 0.9, maxDoorMs: 1.6 };

const [part = "all", ...numbers] = process.argv.slice(2);
const [clients = 200, sessions = 1_000, words = 100, rounds = 3] = numbers.map(Number);
const isWanted = (name: string) => part === "all" || part === name;

printMachine();
for (const hasKey of [false, true]) {
  const limits = hasKey ? WITH_KEY : WITHOUT_KEY;
  console.log(`\nmodel service ${hasKey ? "with a key, so behind the model gateway" : "without a key"}`);
  if (isWanted("latency")) await withModel(LIMIT_MS, measureLatency, { hasKey });
  if (isWanted("throughput")) {
    await withModel(LIMIT_MS, async (...parts) => await measureThroughput(...parts, limits), { hasKey });
  }
}
if (isWanted("streaming")) {
  const size = { clients, sessions, words, rounds };
  await withModel(LIMIT_MS, async (env, folder, model) => await measureStreaming(env, folder, model, size));
}
if (isWanted("memory")) await withModel(LIMIT_MS, measureMemory);
