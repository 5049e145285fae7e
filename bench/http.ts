/**
 * Measures the HTTP API: the memory and the processor time of idle streams. The API and the model run as separate processes.
 *
 * Run: npx tsx bench/http.ts [all|idle]
 */
import { withModel } from "./gateway/with-model.js";
import { measureIdleStreams } from "./http/memory.js";
import { printMachine } from "./measure.js";

/** How long each part may take. */
const LIMIT_MS = 5 * 60 * 1000;

const [part = "all"] = process.argv.slice(2);
const isWanted = (name: string) => part === "all" || part === name;

printMachine();
if (isWanted("idle")) await withModel(LIMIT_MS, measureIdleStreams);
