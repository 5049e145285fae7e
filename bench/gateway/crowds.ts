import type { SessionRecord } from "../../src/base/session.js";
import { APART_OPTIONS, sessionParams } from "../../src/door/policy/settings.js";
import { Fleet } from "../../src/index.js";
import { readConnectionToken } from "../../src/runtime/files/server-folder.js";
import { processorSeconds } from "../measure.js";
import { type PartProcess, startBuilt } from "./processes.js";
import { RawClient } from "./raw-client.js";

/**
 * The number of servers. It is enough for all clients of both sides, which stay connected: a server accepts 128
 * connections at a time (measured with runtime 1.0.85).
 */
const SERVERS = 4;

export interface Member {
  client: RawClient;
  /** The ids of the client's sessions. */
  ids: string[];
}

/** The clients of one side of the comparison: connected directly to the servers, or through the front door. */
export interface Crowd {
  name: string;
  members: Member[];
}

/** The same number of clients and sessions on both sides, on the same servers. */
export interface Crowds {
  direct: Crowd;
  through: Crowd;
  /** The processor time that each part has used so far, in seconds. */
  usage(): Record<"door" | "runtime" | "model" | "clients", number>;
}

export interface CrowdOptions {
  /** The number of clients on each side. Every client has its own user. */
  clients: number;
  /** The number of sessions of all clients of one side together. */
  sessions: number;
  /** As in `RawClientOptions`. */
  nagle?: boolean;
}

/** Starts a fleet of shared servers, its front door and the clients of both sides, and runs `use` with them. */
export async function withCrowds(
  env: NodeJS.ProcessEnv,
  folder: string,
  model: PartProcess,
  { clients, sessions, nagle = false }: CrowdOptions,
  use: (crowds: Crowds) => Promise<void>,
): Promise<void> {
  const shared = {
    ...env,
    COPILOTFLEET_ISOLATION: "shared",
    COPILOTFLEET_POOL_SERVERS: String(SERVERS),
  };
  await using fleet = await Fleet.open({ env: shared, cwd: folder });
  using door = await startBuilt("door", shared);
  const direct: Crowd = { name: "directly", members: [] };
  const through: Crowd = { name: "through the door", members: [] };
  const provider = { type: "openai", wireApi: "completions", baseUrl: model.url };
  const pids = new Set<number>();
  // Each user stays on one server, because the default strategy is sticky. Both clients of a user therefore use the
  // same server, and the sides differ only in the door. The direct sessions are created with the settings that the door
  // applies on a shared server.
  for (let index = 0; index < clients; index++) {
    const user = `user-${index}`;
    const server = await fleet.servers.place(user);
    if (server.pid !== null) pids.add(server.pid);
    const there = await RawClient.connect(server.url ?? "", readConnectionToken(server.home), { nagle });
    const here = await RawClient.connect(door.url, (await fleet.tokens.issue(user)).token, { nagle });
    const count = Math.floor(((index + 1) * sessions) / clients) - Math.floor((index * sessions) / clients);
    const ids = Array.from({ length: count }, (_, at) => `${user}-${at}`);
    for (const id of ids) {
      await here.request("session.create", { sessionId: id, streaming: true });
      const record = { id: `direct-${id}`, model: null, persistence: "persistent" } as SessionRecord;
      const surroundings = {
        config: fleet.config,
        own: false,
        sandbox: undefined,
        isolation: "shared" as const,
        member: false,
        home: "/",
        provider,
        gitHubToken: null,
        toolSandbox: null,
      };
      await there.request("session.create", sessionParams("session.create", { streaming: true }, record, surroundings));
      await there.request("session.options.update", { ...APART_OPTIONS, sessionId: record.id });
    }
    through.members.push({ client: here, ids });
    direct.members.push({ client: there, ids: ids.map((id) => `direct-${id}`) });
  }
  await use({
    direct,
    through,
    usage: () => ({
      door: processorSeconds(door.pid),
      runtime: [...pids].reduce((sum, pid) => sum + processorSeconds(pid), 0),
      model: processorSeconds(model.pid),
      clients: processorSeconds(process.pid),
    }),
  });
  for (const { client } of [...direct.members, ...through.members]) client.end();
}
