/**
 * Measures the HTTP API: the turns of one client beside the front door, and the memory and the processor time of idle streams.
 * The doors and the model run as separate processes.
 *
 * Run: npx tsx bench/http.ts [all|turns|idle]
 */
import { withModel } from "./gateway/with-model.js";
import { measureIdleStreams } from "./http/memory.js";
import { measureTurns } from "./http/turns.js";
import { printMachine } from "./measure.js";

/** How long each part may take. */
const LIMIT_MS = 5 * 60 * 1000;

const [part = "all"] = process.argv.slice(2);
const isWanted = (name: string) => part === "all" || part === name;

printMachine();
if (isWanted("turns")) await withModel(LIMIT_MS, measureTurns);
if (isWanted("idle")) await withModel(LIMIT_MS, measureIdleStreams);
