import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { Fleet } from "../../src/index.js";
import { claim } from "../measure.js";
import { startBuilt, startPart } from "./processes.js";
import { RawClient } from "./raw-client.js";

/** Enough servers for 1,000 clients: a server accepts 128 connections at a time (measured with runtime 1.0.85). */
const SERVERS = 10;
const STEPS = [100, 500, 1_000] as const;
const KB = 1024;

/**
 * Measures the memory that an idle client with an accepted token costs the door's process: heap and external buffers
 * after a garbage collection. The result is the slope from the first step to the last, so the base memory of the
 * process does not count. A relay, which only connects two sockets for each client, shows how much of the memory Node
 * itself needs.
 */
export async function measureMemory(env: NodeJS.ProcessEnv, folder: string): Promise<void> {
  const shared = {
    ...env,
    COPILOTFLEET_ISOLATION: "shared",
    COPILOTFLEET_POOL_SERVERS: String(SERVERS),
    // Each connection uses the next server.
    COPILOTFLEET_POOL_STRATEGY: "round-robin",
  };
  await using fleet = await Fleet.open({ env: shared, cwd: folder });
  const { token } = await fleet.tokens.issue("idler");
  using door = await startBuilt("door", shared);
  const clients: RawClient[] = [];
  const perClient = await slope(
    "the door",
    door,
    async () => void clients.push(await RawClient.connect(door.url, token)),
  );
  for (const client of clients) client.end();

  const sink = createServer((socket) => socket.on("error", () => undefined)).listen(0, "127.0.0.1");
  await once(sink, "listening");
  using relay = await startPart(["relay", `127.0.0.1:${(sink.address() as AddressInfo).port}`]);
  const [host = "", port = ""] = relay.url.split(":");
  const sockets: ReturnType<typeof connect>[] = [];
  const perRelay = await slope("a relay", relay, async () => {
    const socket = connect({ host, port: Number(port) });
    sockets.push(socket);
    await once(socket, "connect");
  });
  for (const socket of sockets) socket.destroy();
  sink.close();
  console.log(
    `     of that the two sockets ${perRelay.toFixed(1)} kB, the door's own ${(perClient - perRelay).toFixed(1)} kB`,
  );
  claim("memory per idle client in kB", perClient, 64);
}

/**
 * Adds connections in steps and measures the memory after each step.
 *
 * @returns the memory for each connection, in kB
 */
async function slope(
  name: string,
  part: Awaited<ReturnType<typeof startPart>>,
  add: () => Promise<void>,
): Promise<number> {
  const points: { held: number; resident: number }[] = [];
  let count = 0;
  for (const step of STEPS) {
    for (; count < step; count++) await add();
    const { heapUsed, external, rss } = await part.memory();
    points.push({ held: (heapUsed + external) / KB, resident: rss / KB });
    console.log(
      `${name} with ${step} idle clients: heap and buffers ${((heapUsed + external) / KB).toFixed(0)} kB, resident ${(rss / KB).toFixed(0)} kB`,
    );
  }
  const [first, last] = [points[0], points.at(-1)];
  const added = STEPS[2] - STEPS[0];
  return ((last?.held ?? Number.NaN) - (first?.held ?? Number.NaN)) / added;
}
