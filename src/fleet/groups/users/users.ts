import { type PurgeReceipt, purgeUser } from "../../../peers/purge.js";
import { listUsers, type UserEntry } from "../../../peers/users.js";
import { NEVER } from "../../../runtime/clock.js";
import * as arg from "../../arguments.js";
import type { FleetParts } from "../../parts.js";
import { Group } from "../group.js";
import type { SessionGroup } from "../sessions.js";
import type { ExportedUser } from "./export-user.js";

export interface PurgeUserOptions {
  /** Erase nothing, and return what would be erased. */
  dryRun?: boolean;
  /** Return an empty receipt for a user of whom the fleet knows nothing. */
  ignoreNotFound?: boolean;
  /** The names of hosts that never come back. The purge does not wait for them, and lists them in `remains`. */
  lostHosts?: readonly string[];
  signal?: AbortSignal;
}

export interface ExportUserOptions {
  /** The path of a folder that does not exist, or is empty. */
  output: string;
  signal?: AbortSignal;
}

/** The users of the fleet, and their data. */
export class UserGroup extends Group {
  readonly #sessions: SessionGroup;

  constructor(parts: FleetParts, sessions: SessionGroup) {
    super(parts);
    this.#sessions = sessions;
  }

  /** Lists the users who have a session, a server or a token, by name. */
  async list(): Promise<UserEntry[]> {
    return await listUsers(this.parts);
  }

  /**
   * Erases all data of a user on all hosts: sessions, histories, homes, tokens, placements, leases and logs. In the ledger and in
   * the events, a pseudonym replaces the name. Stops the user's servers at once. Until the purge is complete, the user
   * cannot begin anything new. If it is interrupted, the user's next purge, or the next gc or `serve` on each host,
   * finishes it.
   *
   * The result lists what remains and why.
   *
   * @throws FleetError `FLEET_USER_NOT_FOUND`; `FLEET_USAGE_INVALID` when one of `lostHosts` is alive, or is not a host that the purge waits
   * for.
   */
  async purge(
    user: string,
    { dryRun = false, ignoreNotFound = false, lostHosts = [], signal = NEVER }: PurgeUserOptions = {},
  ): Promise<PurgeReceipt> {
    return await purgeUser(this.parts, user, { dryRun, ignoreNotFound, lostHosts, signal });
  }

  /**
   * Writes all data of a user to a folder: each session as an archive, and everything else as JSON.
   *
   * @throws FleetError `FLEET_USER_NOT_FOUND`; `FLEET_USAGE_INVALID` when the folder is not empty.
   */
  async export(user: string, { output, signal = NEVER }: ExportUserOptions): Promise<ExportedUser> {
    const { exportUser } = await import("./export-user.js");
    return await exportUser({ parts: this.parts, sessions: this.#sessions }, user, { output, signal });
  }

  static {
    Group.guard(UserGroup.prototype, {
      list: [],
      purge: [
        arg.user,
        arg.optional({
          dryRun: { check: arg.flag },
          ignoreNotFound: { check: arg.flag },
          lostHosts: { check: arg.texts },
          ...arg.SIGNAL,
        }),
      ],
      export: [arg.user, ["options", arg.options({ output: arg.required(arg.text), ...arg.SIGNAL })]],
    });
  }
}
