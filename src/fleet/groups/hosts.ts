import type { HostRecord } from "../../model/host.js";
import { lookAtAll, type Overview } from "../../peers/overview.js";
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

  static {
    Group.guard(HostGroup.prototype, {
      list: [],
      names: [],
      overview: [],
    });
  }
}
