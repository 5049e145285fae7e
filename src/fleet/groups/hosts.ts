import { planRebalance, type RebalancePlan } from "../../hosts/rebalance.js";
import type { HostRecord } from "../../model/host.js";
import { moveUsers } from "../../peers/move-users.js";
import { lookAtAll, type Overview } from "../../peers/overview.js";
import * as arg from "../arguments.js";
import type { Rebalanced, RebalanceRequest } from "../options.js";
import { Group } from "./group.js";

/** The hosts of the fleet, and the placement of users on them. */
export class HostGroup extends Group {
  /** Lists the hosts of the fleet, including those that are gone; empty if the store supports only one host. */
  async list(): Promise<HostRecord[]> {
    return await this.parts.directory.list();
  }

  /** Lists the names of the hosts of the fleet; empty if the store supports only one host. */
  async names(): Promise<string[]> {
    return await this.parts.hosts.names();
  }

  /** Returns all hosts, servers and users of the fleet, and the number of sessions. */
  async overview(): Promise<Overview> {
    return await lookAtAll(this.parts);
  }

  /**
   * Plans a new placement of all users on the current hosts: who would move, and who would have to stay and why. Moves
   * nobody.
   */
  async planRebalance(): Promise<RebalancePlan> {
    const { directory, store } = this.parts;
    const [hosts, placements, sessions] = await Promise.all([
      directory.list(),
      store.placements.list(),
      store.sessions.list(),
    ]);
    return planRebalance({ hosts, placements, sessions, isShared: directory.isShared });
  }

  /**
   * Moves users as {@link planRebalance} proposes, each session between two turns. If a turn takes too long, its
   * session stays on the old host, where it still works. A later call can move it.
   */
  async rebalance(options: RebalanceRequest = {}): Promise<Rebalanced> {
    const { moves, stays } = await this.planRebalance();
    const { waitMs = this.parts.config.drain.timeoutMs } = options;
    return { moved: await moveUsers(moves, waitMs, this.parts), stays };
  }

  static {
    Group.guard(HostGroup.prototype, {
      list: [],
      names: [],
      overview: [],
      planRebalance: [],
      rebalance: [arg.optional(arg.WAIT)],
    });
  }
}
