import { APART_OPTIONS, sessionParams } from "../../src/gateway/policy/settings.js";
import { Fleet } from "../../src/index.js";
import type { SessionRecord } from "../../src/model/session.js";
import { readConnectionToken } from "../../src/runtime/files/server-folder.js";
import { claim, compare, processorSeconds } from "../measure.js";
import { type PartProcess, startPart } from "./processes.js";
import { RawClient } from "./raw-client.js";

/**
 * A server accepts 128 connections at a time (measured with runtime 1.0.85), and the clients of both sides stay
 * connected.
 */
const SERVERS = 4;

export interface StreamingOptions {
  clients: number;
  /** The number of sessions of all clients together. */
  sessions: number;
  /** The number of words in each answer. Each word is a delta. */
  words: number;
  rounds: number;
}

/** The clients of one side. They connect directly to the servers, or to the door. */
interface Crowd {
  name: string;
  members: { client: RawClient; ids: string[] }[];
}

export async function measureStreaming(
  env: NodeJS.ProcessEnv,
  folder: string,
  model: PartProcess,
  { clients, sessions, words, rounds }: StreamingOptions,
): Promise<void> {
  const shared = {
    ...env,
    COPILOTFLEET_ISOLATION: "shared",
    COPILOTFLEET_POOL_SERVERS: String(SERVERS),
  };
  await using fleet = await Fleet.open({ env: shared, cwd: folder });
  using door = await startPart(["door"], shared);
  const users = Array.from({ length: clients }, (_, index) => `user-${index}`);
  const direct: Crowd = { name: "directly", members: [] };
  const guests: Crowd = { name: "through the door", members: [] };
  const provider = { type: "openai", wireApi: "completions", baseUrl: model.url };
  const pids = new Set<number>();
  // Each user stays on one server, because the default strategy is sticky. Both clients of a user therefore use the
  // same server, and the sides differ only in the door. The direct sessions are created with the settings that the door
  // applies on a shared server.
  for (const [index, user] of users.entries()) {
    const server = await fleet.serverFor(user);
    if (server.pid !== null) pids.add(server.pid);
    const there = await RawClient.connect(server.url ?? "", readConnectionToken(server.home));
    const here = await RawClient.connect(door.url, (await fleet.issueToken(user)).token);
    const count = Math.floor(((index + 1) * sessions) / clients) - Math.floor((index * sessions) / clients);
    const ids = Array.from({ length: count }, (_, at) => `${user}-${at}`);
    for (const id of ids) {
      await here.request("session.create", { sessionId: id, streaming: true });
      const record = { id: `direct-${id}`, model: null, persistence: "persistent" } as SessionRecord;
      const surroundings = {
        config: fleet.config,
        own: false,
        isolation: "shared" as const,
        member: false,
        home: "/",
        provider,
        gitHubToken: null,
      };
      await there.request("session.create", sessionParams("session.create", { streaming: true }, record, surroundings));
      await there.request("session.options.update", { ...APART_OPTIONS, sessionId: record.id });
    }
    guests.members.push({ client: here, ids });
    direct.members.push({ client: there, ids: ids.map((id) => `direct-${id}`) });
  }
  const prompt = Array.from({ length: words }, (_, index) => `w${index}`).join(" ");
  const parts = { door: [door.pid], runtime: [...pids], model: [model.pid], clients: [process.pid] };
  const streams = await compare(
    rounds,
    [direct, guests].map((crowd) => ({
      name: `${sessions} streams of ${clients} clients, ${crowd.name}`,
      round: async () => {
        const before = usage(parts);
        const deltas0 = count(crowd);
        const start = performance.now();
        await Promise.all(
          crowd.members.flatMap(({ client, ids }) => ids.map(async (id) => await client.turn(id, prompt))),
        );
        const ms = performance.now() - start;
        const deltas = count(crowd) - deltas0;
        const after = usage(parts);
        const perDelta = Object.entries(after).map(
          ([name, used]) => `${name} ${(((used - (before[name] ?? 0)) * 1e6) / deltas).toFixed(0)}`,
        );
        // An answer consists of "[turn N]", which is two words, and the words of the prompt.
        if (deltas !== sessions * (words + 2)) throw new Error(`${crowd.name}: ${deltas} deltas have come`);
        console.log(
          `   ${crowd.name}: ${deltas} deltas in ${(ms / 1000).toFixed(1)} s, ${((deltas / ms) * 1000).toFixed(0)} a second; processor time in µs per delta: ${perDelta.join(", ")}`,
        );
        return ms;
      },
    })),
  );
  const [directly = 0, throughDoor = 0] = [...streams.values()];
  claim("streaming, time through the door to directly", throughDoor / directly, 1 / 0.9);
  for (const { client } of [...direct.members, ...guests.members]) client.end();
}

function count({ members }: Crowd): number {
  return members.reduce((sum, { client }) => sum + client.deltas, 0);
}

function usage(parts: Record<string, number[]>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(parts).map(([name, pids]) => [name, pids.reduce((sum, pid) => sum + processorSeconds(pid), 0)]),
  );
}
