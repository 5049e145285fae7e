import { loadConfig } from "../config/load/load.js";
import type { Config } from "../config/schema.js";
import { HostDirectory } from "../hosts/directory.js";
import { refuseOtherSettings } from "../hosts/serving-note.js";
import { Takeover } from "../hosts/takeover.js";
import { type OpenedProvider, openProvider } from "../models/provider.js";
import { DoorClients } from "../peers/calls/door-client.js";
import { FleetHosts } from "../peers/fleet-hosts.js";
import { LocalHost } from "../peers/local-host.js";
import { RemoteSessions } from "../peers/sessions/remote-sessions.js";
import { Clients, fleetClosed } from "../pool/clients.js";
import { Pool } from "../pool/pool.js";
import { instanceOf, ownHostName, refuseRenamed } from "../runtime/files/host-note.js";
import { SessionFinder } from "../sessions/find.js";
import { Leases } from "../sessions/leases/leases.js";
import { OpenSessions } from "../sessions/open-sessions.js";
import { Sessions } from "../sessions/sessions.js";
import { checkStateFolder } from "../store/file/state-folder.js";
import { openStore } from "../store/open.js";
import type { Store } from "../store/ports.js";
import type { FleetOptions } from "./options.js";

/** The parts of one opened fleet, which its groups share. */
export class FleetParts {
  readonly config: Config;
  readonly stateRoot: string;
  /** The TTL of sessions that have none of their own, in milliseconds. */
  readonly ttlMs: number;
  readonly store: Store;
  readonly directory: HostDirectory;
  readonly pool: Pool;
  readonly clients = new Clients();
  readonly sessions: Sessions;
  readonly leases: Leases;
  /** This host alone, and all hosts of the fleet. */
  readonly own: LocalHost;
  readonly hosts: FleetHosts;
  readonly finder: SessionFinder;
  readonly doorClients = new DoorClients();
  readonly open: OpenSessions;
  /**
   * Closes the front doors and supervisors of this process. A supervisor comes before its door. Closing again is
   * harmless.
   */
  readonly endings: (() => Promise<unknown>)[] = [];
  readonly #env: NodeJS.ProcessEnv;
  readonly #warnings: string[] = [];
  #provider: Promise<OpenedProvider> | undefined;
  #closed = false;

  /** @throws FleetError as `Fleet.open` does. */
  constructor(options: FleetOptions) {
    const env = options.env ?? process.env;
    const { config, stateRoot } = loadConfig({
      env,
      cwd: options.cwd ?? process.cwd(),
      ...(options.configFile === undefined ? {} : { configFile: options.configFile }),
      ...(options.config === undefined ? {} : { flags: options.config }),
    });
    checkStateFolder(stateRoot);
    refuseOtherSettings(config, stateRoot);
    refuseRenamed(config, stateRoot);
    this.config = config;
    this.stateRoot = stateRoot;
    this.ttlMs = config.session.ttlMs;
    this.#env = env;
    this.store = openFleetStore(config, stateRoot);
    const warn = (message: string) => void this.#warnings.push(message);
    const { store, clients } = this;
    const directory = new HostDirectory({ store, config });
    const pool = new Pool({ store, config, stateRoot, env });
    const leases = new Leases(store);
    const takeover = new Takeover({ store, config, directory, placer: pool.placer });
    const provider = async () => (await this.#openedProvider()).provider;
    const base = { store, config, env, directory };
    const local = { ...base, takeover, pool, clients };
    const sessions = new Sessions({ ...local, leases, provider, warn });
    this.own = new LocalHost({ ...local, stateRoot, sessions });
    this.hosts = new FleetHosts({ ...base, own: this.own, warn });
    const elsewhere = new RemoteSessions(sessions, this.hosts);
    this.finder = new SessionFinder(base, elsewhere);
    this.open = new OpenSessions(sessions, this.finder, elsewhere);
    this.directory = directory;
    this.pool = pool;
    this.leases = leases;
    this.sessions = sessions;
  }

  /** @throws FleetError `FLEET_CLOSED`. */
  assertOpen(): void {
    if (this.#closed) throw fleetClosed();
  }

  takeWarnings(): string[] {
    return [...new Set([...this.store.takeWarnings(), ...this.#warnings.splice(0)])];
  }

  async close(): Promise<void> {
    this.#closed = true;
    const provider = this.#provider;
    this.#provider = undefined;
    const steps = [
      ...this.endings.splice(0),
      async () => await this.open.close(),
      async () => await this.doorClients.closeAll(),
      async () => await this.clients.closeAll(),
      async () => await (await provider)?.close(),
      async () => await this.store.close(),
    ];
    // Run all steps even if one fails, because an open connection would keep the process alive.
    const failures: unknown[] = [];
    for (const step of steps) await step().catch((error: unknown) => void failures.push(error));
    if (failures.length > 0) throw failures[0];
  }

  #openedProvider(): Promise<OpenedProvider> {
    this.assertOpen();
    this.#provider ??= openProvider(this.config.provider, this.#env);
    return this.#provider;
  }
}

function openFleetStore(config: Config, stateRoot: string): Store {
  const { store } = config;
  return store.kind === "file"
    ? openStore("file", stateRoot)
    : openStore(store.url, stateRoot, ownHostName(config, stateRoot), () => instanceOf(stateRoot));
}
