import { isFleetError } from "../../errors.js";
import { launchesOf } from "../../pool/admission.js";
import { isBroken } from "../../pool/server.js";
import { heldPorts } from "../../pool/start/ports.js";
import { Group } from "./group.js";

/** The recorded state, for the checks and repairs of `doctor`. Except for sessions, only the state of this host. */
export class RecordGroup extends Group {
  /** Returns the number of servers that are recorded on this host, in any state. */
  async servers(): Promise<number> {
    return Object.keys((await this.parts.store.registry.read()).servers).length;
  }

  /** Returns the number of recorded sessions of all hosts. A damaged record adds a warning (`fleet.takeWarnings`). */
  async sessions(): Promise<number> {
    return (await this.parts.store.sessions.list()).length;
  }

  /** Writes the registry again if one of its files is damaged. */
  async repairRegistry(): Promise<void> {
    const { store } = this.parts;
    await store.registry.update(() => undefined);
    store.takeWarnings(); // discard the warnings about damage that is now repaired
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
      servers: [],
      sessions: [],
      repairRegistry: [],
      repairSessions: [],
      brokenServers: [],
      launchIds: [],
      heldPorts: [],
    });
  }
}
