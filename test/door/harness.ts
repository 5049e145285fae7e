import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CopilotClient, type CopilotClientOptions, RuntimeConnection } from "@github/copilot-sdk";
import { expect } from "vitest";
import type { Clock } from "../../src/base/clock.js";
import type { FrontDoor } from "../../src/door/door.js";
import type { DoorEvent, RequestReport } from "../../src/door/state/report.js";
import { Fleet } from "../../src/fleet/fleet.js";
import { openParts } from "../../src/fleet/parts.js";
import type { FleetOptions } from "../../src/hosts/options.js";
import type { ModelProvider } from "../../src/providers/provider.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { type PortRange, testPorts } from "../fixtures/fleets/ports.js";
import { RUNTIME_VARIABLES } from "../fixtures/fleets/runtime.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { processesWith } from "../fixtures/processes.js";
import { TOOLS_ANYWHERE } from "../fixtures/programs/sandbox.js";
import { removeFolder } from "../fixtures/remove-folder.js";

/** A stand-in for the model's key. It must never reach a client. */
export const MODEL_KEY = "canary-model-key-8f2a";

const PROGRAMS = fileURLToPath(new URL("../fixtures/sessions", import.meta.url));
/** Values for `sandbox.binds` that let the plugins of tests run their programs. */
export const READABLE = [dirname(process.execPath), PROGRAMS].map((folder) => `${folder}:ro`);

export interface DoorFleetOptions {
  env?: NodeJS.ProcessEnv;
  config?: object;
  /** Whether the model service has a key. If not, servers reach it without a model gateway. Default: true. */
  hasKey?: boolean;
  /** In place of limits that cannot be set, by the names of limits. */
  fixedLimits?: { default: object; total: object };
  /** For the time limits of the front door and of leases. Default: the system's clock. */
  clock?: Clock;
}

/** A fleet in a temporary folder with an open front door, on the scripted model. */
export class DoorFleet implements AsyncDisposable {
  readonly #clients = new Set<CopilotClient>();

  private constructor(
    readonly folder: string,
    readonly fleet: Fleet,
    readonly door: FrontDoor,
    readonly model: ScriptedModel,
    /** The events that the front door has reported. */
    readonly events: DoorEvent[],
    readonly requests: RequestReport[],
    /** The environment for other processes on the same fleet. */
    readonly env: NodeJS.ProcessEnv,
    readonly ports: PortRange,
    /** The model provider of this process. */
    readonly provider: ModelProvider,
  ) {}

  static async open(options: DoorFleetOptions = {}): Promise<DoorFleet> {
    const folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-door-")));
    const model = await startScriptedModel();
    const ports = testPorts();
    const env = {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      COPILOTFLEET_HOME: join(folder, "state"),
      COPILOT_OFFLINE: "true",
      // The tests use model services on this machine, which direct clients could not reach otherwise.
      COPILOTFLEET_SANDBOX_NETWORK: "open",
      MODEL_KEY,
      ...RUNTIME_VARIABLES,
      ...TOOLS_ANYWHERE,
      ...options.env,
    };
    const provider = {
      type: "openai" as const,
      baseUrl: model.baseUrl,
      apiKey: options.hasKey === false ? null : { env: "MODEL_KEY" },
    };
    // A busy machine may pause for seconds. The fleet must not take a server for hung because of that.
    const health = { timeout: "10s" };
    const sandbox = { binds: READABLE };
    // With "auto", the result would depend on this machine's sandbox. Tests that need files or programs override it.
    const given: { provider?: unknown; session?: object } = options.config ?? {};
    const session = given.provider === undefined ? { session: { host: "none", ...given.session } } : {};
    const config = { ports, provider, health, sandbox, ...given, ...session } as NonNullable<FleetOptions["config"]>;
    const fleetOptions = { env, cwd: folder, config };
    // Use Reflect, because the constructor is private: programs do not make a fleet from parts.
    const parts = openParts(fleetOptions, options.clock);
    Object.assign(parts.config.limits.default, options.fixedLimits?.default);
    Object.assign(parts.config.limits.total, options.fixedLimits?.total);
    const fleet = Reflect.construct(Fleet, [parts]) as Fleet;
    const events: DoorEvent[] = [];
    const requests: RequestReport[] = [];
    const door = await fleet.doors.open({
      listen: { host: "127.0.0.1", port: 0 },
      onEvent: (event) => events.push(event),
      onRequest: (report) => requests.push(report),
    });
    return new DoorFleet(folder, fleet, door, model, events, requests, env, ports, parts.provider);
  }

  /** The recorded state, read directly and not through the fleet. */
  get store(): Store {
    return openStore("file", join(this.folder, "state"));
  }

  get url(): string {
    return `127.0.0.1:${this.door.address.port}`;
  }

  async token(user: string): Promise<string> {
    return (await this.fleet.tokens.issue(user)).token;
  }

  /** Returns an unmodified SDK client of this user at the front door. The disposal of this fleet stops the client. */
  async client(user: string): Promise<CopilotClient> {
    return await this.connect(this.url, await this.token(user));
  }

  async connect(url: string, connectionToken: string, options: CopilotClientOptions = {}): Promise<CopilotClient> {
    const client = new CopilotClient({ ...options, connection: RuntimeConnection.forUri(url, { connectionToken }) });
    this.#clients.add(client);
    await client.start();
    return client;
  }

  /** The user's running server. Throws if there is none. */
  async serverOf(user: string): Promise<{ id: string; pid: number; home: string }> {
    const { id, pid, home } = await this.fleet.servers.ofUser(user);
    if (pid === null) throw new Error(`no server of ${user} runs`);
    return { id, pid, home };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#clients].map(async (client) => await client.forceStop()));
    await this.door.close();
    const servers = await this.fleet.servers.list();
    await this.fleet.servers.stop(
      servers.map(({ id }) => id),
      { force: true },
    );
    await this.fleet.close();
    await this.model[Symbol.asyncDispose]();
    const left = processesWith(`COPILOTFLEET_OWNER=${join(this.folder, "state")}`);
    await removeFolder(this.folder);
    expect(left, "processes left").toEqual([]);
  }
}
