import { effectiveLimits } from "../../accounts/limits.js";
import { isFleetError } from "../../base/errors.js";
import type { Purge } from "../../base/host.js";
import { lackingIn, NO_SANDBOX, type Protection, type SandboxMode } from "../../base/sandbox.js";
import type { ServerState } from "../../base/server.js";
import { gatherEvents } from "../../hosts/all-events.js";
import { readSessionFolder } from "../../runtime/history/session-state.js";
import { sandboxNow } from "../../sandbox/sandbox.js";
import { launchesOf } from "../../servers/admission.js";
import { findServers } from "../../servers/repair.js";
import { isBroken, isRunning } from "../../servers/server.js";
import { heldPorts } from "../../servers/surroundings.js";
import { purgesUnderWay, type StoreProbe } from "../../store/ports.js";
import { Group } from "./group.js";

/** The sessions that their users cannot use, or that have impossible times. */
export interface SessionTroubles {
  /** Sessions of this host that had turns and whose history is not on disk. */
  lost: string[];
  /** Sessions on the disk of another host, which is not alive. */
  stranded: { id: string; host: string }[];
  /** Sessions whose last use is in the future, by this machine's clock. */
  future: string[];
}

/** A server that needs attention. */
export interface TroubledServer {
  id: string;
  state: ServerState;
  /** The reason, if it is known. */
  failure: string | null;
}

/** A running server whose sandbox is weaker than the one that the server would get now. */
export interface WeakServer {
  id: string;
  /** The mode of its sandbox. */
  mode: SandboxMode;
  /** The protections that only the new sandbox would give. */
  lacks: Protection[];
}

/** How far in the future a last use may be before it is reported, in milliseconds. A clock may have been set back. */
const CLOCK_TOLERANCE_MS = 60_000;

/**
 * The recorded state, for the checks and repairs of `doctor`. The methods about servers and ports cover only this host.
 */
export class RecordGroup extends Group {
  /**
   * Returns the unfinished purges, each with its user, its beginning, and the hosts that still have to erase their
   * part. Leaves out purges that only hosts that are gone still have to finish.
   */
  async purges(): Promise<Purge[]> {
    return await purgesUnderWay(this.parts.store);
  }

  /**
   * Returns the number of users who have their own limits or groups, and lists those of them who have more sessions
   * than they may have.
   */
  async userLimits(): Promise<{ users: number; exceeded: { user: string; used: number; max: number }[] }> {
    const { store, config } = this.parts;
    const records = await store.limits.list();
    const exceeded: { user: string; used: number; max: number }[] = [];
    for (const record of records) {
      const max = effectiveLimits(config.limits, record).limits.sessions;
      const used = max === null ? 0 : await store.sessions.count(record.user, max);
      if (max !== null && used > max) exceeded.push({ user: record.user, used, max });
    }
    const limited = records.filter(({ limits, groups }) => Object.keys(limits).length + groups.length > 0);
    return { users: limited.length, exceeded };
  }

  /** Returns the number of servers that are recorded on this host, in any state. */
  async servers(): Promise<number> {
    return Object.keys((await this.parts.store.registry.read()).servers).length;
  }

  /** Returns the number of recorded sessions of all hosts. A damaged record adds a warning (`fleet.takeWarnings`). */
  async sessions(): Promise<number> {
    return (await this.parts.store.sessions.list()).length;
  }

  /** Measures how quickly the store answers, and how its clock differs from this machine's. */
  async probeStore(): Promise<StoreProbe> {
    return await this.parts.store.probe();
  }

  /** Reads all records that no other check reads, so that damage in them adds a warning. */
  async readRest(): Promise<void> {
    const { store } = this.parts;
    await store.placements.list();
    for (const { id } of await store.sessions.list()) await store.leases.read(id);
  }

  /**
   * Finds sessions that users cannot use, or that were last used in the future. @throws FleetError
   * `FLEET_STORAGE_UNUSABLE` when the shared storage is not mounted.
   */
  async sessionTroubles(): Promise<SessionTroubles> {
    const { store, directory } = this.parts;
    await directory.assertStorage(); // while the shared storage is missing, all histories look deleted
    const { servers } = await store.registry.read();
    const isHere = await directory.holds();
    const latest = Date.now() + CLOCK_TOLERANCE_MS;
    const troubles: SessionTroubles = { lost: [], stranded: [], future: [] };
    for (const record of await store.sessions.list()) {
      const { id, host = "", serverId, turns, lastUsedAt } = record;
      const home = servers[serverId]?.home;
      const isLost = () => home === undefined || readSessionFolder(home, id)?.hasHistory !== true;
      if (await directory.isStranded(record)) troubles.stranded.push({ id, host });
      else if (isHere(record) && turns > 0 && isLost()) troubles.lost.push(id);
      if (Date.parse(lastUsedAt) > latest) troubles.future.push(id);
    }
    return troubles;
  }

  /** Writes the registry again if one of its files is damaged. */
  async repairRegistry(): Promise<void> {
    const { store } = this.parts;
    await store.registry.update(() => undefined);
    store.takeWarnings(); // discard the warnings about damage that is now repaired
  }

  /**
   * Rebuilds a registry that cannot be read, from the folders and processes of this host's servers. Resolves with the ids
   * of the servers, and of the folders whose user is not known. Resolves with null if the store does not support it.
   */
  async rebuildRegistry(): Promise<{ servers: string[]; unknown: string[] } | null> {
    const { store, stateRoot, hosts } = this.parts;
    const { registry } = store;
    if (registry.rebuild === undefined) return null;
    const owners = (await store.sessions.list()).map(({ owner }) => owner);
    const started = await gatherEvents(hosts, { types: ["server.started"] });
    const users = [...owners, ...started.flatMap(({ user }) => user ?? [])];
    const { servers, unknown } = findServers(stateRoot, users);
    await registry.rebuild({ servers: Object.fromEntries(servers.map((server) => [server.id, server])) });
    await this.repairRegistry();
    return { servers: servers.map(({ id }) => id), unknown };
  }

  /** Writes each session record again if its file is damaged. */
  async repairSessions(): Promise<void> {
    const { store } = this.parts;
    for (const { id } of await store.sessions.list()) {
      await store.sessions
        .update(id, () => undefined)
        .catch((error: unknown) => {
          if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error; // deleted since the listing
        });
    }
    store.takeWarnings();
  }

  /** Returns the ids of this host's servers that do not run as recorded. `servers.list` repairs their records. */
  async brokenServers(): Promise<string[]> {
    const { servers } = await this.parts.store.registry.read();
    return Object.values(servers)
      .filter(isBroken)
      .map(({ id }) => id);
  }

  /** Returns this host's servers that have failed or do not answer. */
  async troubledServers(): Promise<TroubledServer[]> {
    const { servers } = await this.parts.store.registry.read();
    return Object.values(servers)
      .filter(({ state }) => state === "failed" || state === "unhealthy")
      .map(({ id, state, failure }) => ({ id, state, failure }));
  }

  /** Returns this host's running servers that would get a stronger sandbox from a restart with this configuration. */
  async weakServers(): Promise<WeakServer[]> {
    const { store, config, env } = this.parts;
    const { servers } = await store.registry.read();
    const now = await sandboxNow(config, env);
    return Object.values(servers)
      .filter(isRunning)
      .map(({ id, sandbox = NO_SANDBOX }) => ({ id, mode: sandbox.mode, lacks: lackingIn(sandbox, now) }))
      .filter(({ lacks }) => lacks.length > 0);
  }

  /** Returns the launch ids of this host's servers. A process of this fleet with another launch id has no record. */
  async launchIds(): Promise<Set<string>> {
    return launchesOf(await this.parts.store.registry.read());
  }

  /** Returns the ports of the recorded servers of this host. */
  async heldPorts(): Promise<Set<number>> {
    return heldPorts(await this.parts.store.registry.read());
  }

  static {
    Group.guard(RecordGroup.prototype, {
      purges: [],
      servers: [],
      sessions: [],
      probeStore: [],
      userLimits: [],
      readRest: [],
      sessionTroubles: [],
      troubledServers: [],
      weakServers: [],
      repairRegistry: [],
      rebuildRegistry: [],
      repairSessions: [],
      brokenServers: [],
      launchIds: [],
      heldPorts: [],
    });
  }
}
