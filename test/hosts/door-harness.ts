import { mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import type { SessionRecord } from "../../src/base/session.js";
import { userConfigFile } from "../../src/config/load/paths.js";
import { issueToken } from "../../src/identity/tokens.js";
import { MODEL_KEY, READABLE } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import type { LogEntry } from "../fixtures/fleets/serve.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import type { RedisServer } from "../fixtures/store/redis-server.js";

export interface HostDoorsOptions {
  redis: RedisServer;
  storage: "local" | "shared";
  names?: readonly string[];
  env?: NodeJS.ProcessEnv;
  /** Changes the hosts before they serve. */
  prepare?: (hosts: TestHosts) => void;
}

/** Writes the user's configuration file of each host. Call it before the hosts serve. */
export function configure(hosts: TestHosts, names: readonly string[], config: object): void {
  for (const name of names) {
    const path = userConfigFile(hosts.host(name).env);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, JSON.stringify(config), { mode: 0o600 });
  }
}

/** Several hosts, each with its own `serve`, on the scripted model, and clients at their front doors. */
export class HostDoors implements AsyncDisposable {
  readonly #clients = new Set<CopilotClient>();
  readonly #doors = new Map<string, string>();
  /** All tokens that have been issued. */
  readonly tokens: string[] = [];

  private constructor(
    readonly hosts: TestHosts,
    readonly model: ScriptedModel,
  ) {}

  static async open({ env, prepare, names = ["h1", "h2"], ...options }: HostDoorsOptions): Promise<HostDoors> {
    const model = await startScriptedModel();
    const hosts = new TestHosts({
      ...options,
      names,
      env: {
        COPILOTFLEET_PROVIDER_TYPE: "openai",
        COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
        COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
        COPILOTFLEET_SERVE_ACCESS_LOG: "true",
        COPILOTFLEET_SANDBOX_BINDS: READABLE.join(","),
        MODEL_KEY,
        ...env,
      },
    });
    prepare?.(hosts);
    const doors = new HostDoors(hosts, model);
    try {
      await doors.serve();
      return doors;
    } catch (error) {
      await doors[Symbol.asyncDispose]();
      throw error;
    }
  }

  get store() {
    return this.hosts.store;
  }

  /** Starts `serve` on each host where it is not running. */
  async serve(): Promise<void> {
    await this.hosts.serve();
    for (const { name, door } of await this.store.hosts.list()) if (door !== null) this.#doors.set(name, door);
  }

  /** The address of a host's front door, even if the host has ended. */
  url(name: string): string {
    return this.#doors.get(name) ?? "";
  }

  /** The log entries of a host's `serve` so far. */
  log(name: string): LogEntry[] {
    const lines = this.hosts.host(name).output.split("\n").slice(0, -1);
    return lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as LogEntry);
  }

  async token(user: string): Promise<string> {
    const { token } = await issueToken(this.store, user, null);
    this.tokens.push(token);
    return token;
  }

  /** Places a user on a host, no matter where the user was before. */
  async place(user: string, host: string): Promise<void> {
    await this.store.placements.record(user, await this.store.placements.read(user), { host, serverId: null });
  }

  /** Makes a session look like one of an earlier term of its host, so that the host of its owner takes it. */
  async endTerm(id: string): Promise<void> {
    await this.store.sessions.update(id, (draft) => {
      draft.term = 0;
    });
  }

  async session(id: string): Promise<SessionRecord> {
    const record = await this.store.sessions.read(id);
    if (record === null) throw new Error(`there is no session ${id}`);
    return record;
  }

  async raw(user: string, host: string): Promise<RawClient> {
    return await RawClient.as(this.url(host), await this.token(user));
  }

  /** Returns an unmodified SDK client at a host's front door. The disposal of this object stops the client. */
  async client(user: string, host: string): Promise<CopilotClient> {
    const connectionToken = await this.token(user);
    const client = new CopilotClient({ connection: RuntimeConnection.forUri(this.url(host), { connectionToken }) });
    this.#clients.add(client);
    await client.start();
    return client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#clients].map(async (client) => await client.forceStop()));
    await this.hosts[Symbol.asyncDispose]();
    await this.model[Symbol.asyncDispose]();
  }
}
