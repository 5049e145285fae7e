import { cpSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Fleet } from "../../src/index.js";
import { openStore } from "../../src/store/store.js";
import { startBuilt } from "../gateway/processes.js";
import { claim, processorSeconds } from "../measure.js";
import { openStream, type RawStream } from "./raw-stream.js";

/** The number of streams that open and close first, so that compiled code and other one-time memory do not count. */
const WARM = 300;
const STEPS = [0, 100, 500, 1_000] as const;
const IDLE_SECONDS = 10;
const MB = 1024 * 1024;

/**
 * Measures the memory and the processor time of idle streams in the process of the HTTP API. Each stream follows its
 * own session. The memory is the heap and external buffers after a garbage collection, and the resident memory.
 */
export async function measureIdleStreams(env: NodeJS.ProcessEnv, folder: string): Promise<void> {
  await using fleet = await Fleet.open({ env, cwd: folder });
  const ids = await plantSessions(fleet, env, STEPS.at(-1) ?? 0);
  const { token } = await fleet.tokens.issue("idler");
  using door = await startBuilt("http", env);
  const open = async (id: string) => {
    const stream = await openStream(door.url, { path: `/v1/sessions/${id}/events`, token });
    while (stream.count("assistant.message") === 0) await delay(2);
    return stream;
  };
  const warm = await Promise.all(ids.slice(0, WARM).map(open));
  for (const { socket } of warm) socket.destroy();
  await delay(1_000);

  const streams: RawStream[] = [];
  const points: { held: number; resident: number }[] = [];
  for (const step of STEPS) {
    for (const id of ids.slice(streams.length, step)) streams.push(await open(id));
    const { heapUsed, external, rss } = await door.memory();
    points.push({ held: (heapUsed + external) / MB, resident: rss / MB });
    const { held, resident } = points.at(-1) ?? { held: 0, resident: 0 };
    console.log(`${step} idle streams: heap and buffers ${held.toFixed(1)} MB, resident ${resident.toFixed(1)} MB`);
  }
  await delay(5_000); // Node frees some memory of new connections later
  const { heapUsed, external, rss } = await door.memory();
  const base = points[0] ?? { held: Number.NaN, resident: Number.NaN };
  const before = processorSeconds(door.pid);
  await delay(IDLE_SECONDS * 1_000);
  const share = (processorSeconds(door.pid) - before) / IDLE_SECONDS;
  claim("1,000 idle streams, heap and buffers in MB", (heapUsed + external) / MB - base.held, 20);
  claim("1,000 idle streams, resident memory in MB", rss / MB - base.resident, 20);
  claim("1,000 idle streams, share of one processor", share, 0.05);
  for (const { socket } of streams) socket.destroy();
}

/** Creates sessions by copying a real one, because each real session would take a turn to create. */
export async function plantSessions(fleet: Fleet, env: NodeJS.ProcessEnv, count: number): Promise<string[]> {
  const first = await fleet.sessions.create({ user: "idler", sessionId: "first" });
  await fleet.sessions.send(first, "hello");
  const { home } = await fleet.servers.ofUser("idler");
  const store = openStore("file", env.COPILOTFLEET_HOME ?? "");
  const record = await store.sessions.read("first");
  if (record === null) throw new Error("the session has no record");
  const from = join(home, "session-state", "first");
  const ids = Array.from({ length: count }, (_, index) => `idle-${index}`);
  for (const id of ids) {
    cpSync(from, join(dirname(from), id), { recursive: true });
    await store.sessions.create({ ...record, id });
  }
  await store.close();
  return ids;
}
