import { Events } from "../accounts/audit/events.js";
import { Ledger } from "../accounts/ledger.js";
import { systemClock } from "../base/clock.js";
import { fleetClosed } from "../base/errors.js";
import { loadConfig } from "../config/load/load.js";
import { DoorClients } from "../hosts/calls/control-link.js";
import { FleetHosts } from "../hosts/fleet-hosts.js";
import { LocalHost } from "../hosts/local-host.js";
import type { FleetOptions } from "../hosts/options.js";
import { HistoryFeeds } from "../hosts/sessions/feeds.js";
import { RecordedEvents } from "../hosts/sessions/history.js";
import { RemoteSessions } from "../hosts/sessions/remote-sessions.js";
import { shareRequests } from "../hosts/sessions/requests.js";
import type { BudgetCheck } from "../providers/gateway/request-meter.js";
import { ModelProvider } from "../providers/provider.js";
import { networkFolder } from "../sandbox/network/egress.js";
import { Clients } from "../servers/clients.js";
import { HostDirectory } from "../servers/directory.js";
import { Pool } from "../servers/pool.js";
import { Leases } from "../sessions/leases.js";
import { OpenSessions } from "../sessions/open-sessions.js";
import { AgentRequests, isEnding } from "../sessions/requests.js";
import { Sessions } from "../sessions/sessions.js";
import { Takeover } from "../sessions/takeover.js";
import { SessionFinder } from "../sessions/view.js";
import type { Store } from "../store/store.js";
import { openState } from "./state.js";

/** The parts of one opened fleet. All of its groups use them. */
export type FleetParts = ReturnType<typeof openParts>;

/** @param clock replaced in tests */
export function openParts(options: FleetOptions, clock = systemClock) {
  const env = options.env ?? process.env;
  const { config, stateRoot } = loadConfig({
    env,
    cwd: options.cwd ?? process.cwd(),
    ...(options.configFile === undefined ? {} : { configFile: options.configFile }),
    ...(options.config === undefined ? {} : { flags: options.config }),
  });
  let closed = false;
  const assertOpen = () => {
    if (closed) throw fleetClosed();
  };
  // A set, because a process may add the same warning many times before somebody calls `takeWarnings`.
  const warnings = new Set<string>();
  const warn = (message: string) => void warnings.add(message);

  const store: Store = openState(config, stateRoot, env);
  const events = new Events({ store, config, stateRoot, via: options.via ?? "library", warn });
  const clients = new Clients();
  const doorClients = new DoorClients();
  const directory = new HostDirectory({ store, config });
  const ledger = new Ledger({ usage: store.usage, host: directory.own, warn });
  const checkBudget: BudgetCheck = async (...request) => {
    const { assertBudget } = await import("../accounts/limits.js");
    await assertBudget({ store, config, events }, ...request);
  };
  const provider = new ModelProvider(config, { env, networkFolder: networkFolder(stateRoot), ledger, checkBudget });
  const pool = new Pool({ store, config, stateRoot, env, events });
  const leases = new Leases(store, clock);
  const takeover = new Takeover({ store, config, directory, placer: pool.placer });
  const base = { store, config, env, directory, events };
  const answerMs = config.session.answerTimeoutMs;
  const requests = new AgentRequests({ answerMs, clock, isEnding: async (request) => await isEnding(base, request) });
  const sessions = new Sessions({ ...base, takeover, pool, clients, leases, provider, requests, ledger, warn });
  const own = new LocalHost(sessions, stateRoot);
  const hosts = new FleetHosts({ ...base, own, warn });
  shareRequests({ hosts, requests });
  const elsewhere = new RemoteSessions(sessions, hosts);
  const finder = new SessionFinder(base, elsewhere);
  const feeds = new HistoryFeeds(hosts, clock);
  const ttlMs = config.session.ttlMs;
  const histories = new RecordedEvents({ ...base, hosts, finder, feeds, ttlMs, warn });
  const open = new OpenSessions(sessions, finder, elsewhere, histories);
  /**
   * Functions that close the supervisors and front doors of this process, in this order: a supervisor before its door.
   */
  const endings: (() => Promise<unknown>)[] = [];

  const close = async (): Promise<void> => {
    closed = true;
    const steps = [
      ...endings.splice(0),
      async () => await open.close(),
      async () => await sessions.lastUses.flush(),
      async () => await doorClients.closeAll(),
      async () => await clients.closeAll(),
      async () => await provider[Symbol.asyncDispose](),
      async () => await events.close(),
      async () => await store.close(),
    ];
    // Take all steps even if one fails, because an open connection would keep the process alive.
    const failures: unknown[] = [];
    for (const step of steps) await step().catch((error: unknown) => void failures.push(error));
    if (failures.length > 0) throw failures[0];
  };

  return {
    config,
    env,
    stateRoot,
    /** The TTL of sessions without their own TTL, in milliseconds. Null: for ever. */
    ttlMs,
    store,
    ledger,
    events,
    directory,
    pool,
    provider,
    clients,
    doorClients,
    leases,
    requests,
    sessions,
    /** `own` is this host alone. `hosts` are all hosts of the fleet. */
    own,
    hosts,
    finder,
    feeds,
    open,
    endings,
    warn,
    clock,
    assertOpen,
    takeWarnings: () => {
      const taken = new Set([...store.takeWarnings(), ...warnings]);
      warnings.clear();
      return [...taken];
    },
    close,
  };
}
