import type { SessionRecord } from "../../src/base/session.js";
import { APART_OPTIONS, sessionParams } from "../../src/door/policy/settings.js";
import { Fleet } from "../../src/index.js";
import { readConnectionToken } from "../../src/runtime/files/server-folder.js";
import { processorSeconds } from "../measure.js";
import { type PartProcess, startBuilt, startPart } from "./processes.js";
import { RawClient } from "./raw-client.js";

/**
 * The number of servers. It is enough for all clients of both sides, which stay connected: a server accepts 128
 * connections at a time (measured with runtime 1.0.85).
 */
const SERVERS = 4;

/** A client with its sessions. */
export class Member {
  readonly client: RawClient;
  /** The ids of the client's sessions. */
  ids: string[] = [];
  readonly #create: (id: string) => Promise<void>;

  constructor(client: RawClient, create: (id: string) => Promise<void>) {
    this.client = client;
    this.#create = create;
  }

  async create(count: number): Promise<void> {
    for (let index = 0; index < count; index++) {
      const id = `session-${++created}`;
      await this.#create(id);
      this.ids.push(id);
    }
  }

  /** Replaces the client's sessions by a new one, because each turn makes the history longer and the next turn slower. */
  async renew(): Promise<void> {
    for (const sessionId of this.ids) await this.client.request("session.delete", { sessionId });
    this.ids = [];
    await this.create(1);
  }
}

let created = 0;

/** The clients of one side of the comparison: connected directly to the servers, or through something. */
export interface Crowd {
  name: string;
  members: Member[];
  /** Returns the processor time of what is between the clients and the servers so far, in seconds. */
  between(): number;
}

/** The same number of clients and sessions on all sides, on the same servers. */
export interface Crowds {
  direct: Crowd;
  /** Clients of a process that only passes bytes on. */
  relayed: Crowd;
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
  /** Whether there are clients of a relay, too. */
  relay?: boolean;
}

/** Starts a fleet of shared servers, its front door and the clients of both sides, and runs `use` with them. */
export async function withCrowds(
  env: NodeJS.ProcessEnv,
  folder: string,
  model: PartProcess,
  { clients, sessions, nagle = false, relay = false }: CrowdOptions,
  use: (crowds: Crowds) => Promise<void>,
): Promise<void> {
  const shared = {
    ...env,
    COPILOTFLEET_ISOLATION: "shared",
    COPILOTFLEET_POOL_SERVERS: String(SERVERS),
  };
  await using fleet = await Fleet.open({ env: shared, cwd: folder });
  using door = await startBuilt("door", shared);
  /** The relay in front of each server. */
  const relays = new Map<string, PartProcess>();
  using _ = { [Symbol.dispose]: () => [...relays.values()].map((part) => part[Symbol.dispose]()) };
  const time = (parts: Iterable<number>) => [...parts].reduce((sum, pid) => sum + processorSeconds(pid), 0);
  const crowds = {
    direct: { name: "directly", members: [] as Member[], between: () => 0 },
    relayed: {
      name: "through a relay",
      members: [] as Member[],
      between: () => time([...relays.values()].map(({ pid }) => pid)),
    },
    through: { name: "through the door", members: [] as Member[], between: () => time([door.pid]) },
  };
  const surroundings = {
    config: fleet.config,
    own: false,
    sandbox: undefined,
    isolation: "shared" as const,
    member: false,
    home: "/",
    provider: { type: "openai", wireApi: "completions", baseUrl: model.url },
    gitHubToken: null,
    toolSandbox: null,
  };
  /** Creates a session with the settings that the door applies on a shared server. */
  const createDirectly = async (client: RawClient, id: string) => {
    const record = { id, model: null, persistence: "persistent" } as SessionRecord;
    await client.request("session.create", sessionParams("session.create", { streaming: true }, record, surroundings));
    await client.request("session.options.update", { ...APART_OPTIONS, sessionId: id });
  };
  const pids = new Set<number>();
  // Each user stays on one server, because the default strategy is sticky. All clients of a user therefore use the
  // same server, and the sides differ only in what is between.
  for (let index = 0; index < clients; index++) {
    const user = `user-${index}`;
    const server = await fleet.servers.place(user);
    if (server.pid !== null) pids.add(server.pid);
    const { url } = server;
    if (url === null) throw new Error(`server ${server.id} has no address`);
    const count = Math.floor(((index + 1) * sessions) / clients) - Math.floor((index * sessions) / clients);
    const join = async (crowd: Crowd, address: string, token: string, isDoor = false) => {
      const client = await RawClient.connect(address, token, { nagle });
      const create = async (id: string) => {
        if (isDoor) await client.request("session.create", { sessionId: id, streaming: true });
        else await createDirectly(client, id);
      };
      const member = new Member(client, create);
      await member.create(count);
      crowd.members.push(member);
    };
    await join(crowds.direct, url, readConnectionToken(server.home));
    await join(crowds.through, door.url, (await fleet.tokens.issue(user)).token, true);
    if (!relay) continue;
    const known = relays.get(url) ?? (await startPart(["relay", url]));
    relays.set(url, known);
    await join(crowds.relayed, known.url, readConnectionToken(server.home));
  }
  await use({
    ...crowds,
    usage: () => ({
      door: processorSeconds(door.pid),
      runtime: time(pids),
      model: processorSeconds(model.pid),
      clients: processorSeconds(process.pid),
    }),
  });
  for (const { members } of Object.values(crowds)) for (const { client } of members) client.end();
}
