/**
 * Measures the HTTP API. It compares the turns of one client, and streams of turns to many clients at the same time,
 * with those through the front door. It measures how long an event takes to reach a follower, and the memory and the
 * processor time of 1,000 idle streams. The API, the front door and the model run as separate processes. The API and
 * the front door are those of the built library (`npm run build`).
 *
 * Run: npx tsx bench/http.ts [all|turns|streaming|events|idle] [clients words rounds]
 */
import { withModel } from "./gateway/with-model.js";
import { measureEvents } from "./http/events.js";
import { measureIdleStreams } from "./http/memory.js";
import { measureStreaming } from "./http/streaming.js";
import { measureTurns } from "./http/turns.js";
import { printMachine } from "./measure.js";

/** How long each part may take. */
const LIMIT_MS = 5 * 60 * 1000;

const [part = "all", ...numbers] = process.argv.slice(2);
const [clients = 200, words = 100, rounds = 3] = numbers.map(Number);
const isWanted = (name: string) => part === "all" || part === name;

printMachine();
if (isWanted("turns")) await withModel(LIMIT_MS, measureTurns);
if (isWanted("streaming")) await measureStreaming(LIMIT_MS, { clients, words, rounds });
if (isWanted("events")) await withModel(LIMIT_MS, measureEvents);
if (isWanted("idle")) await withModel(LIMIT_MS, measureIdleStreams);
