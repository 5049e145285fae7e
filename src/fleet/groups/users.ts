import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { NEVER } from "../../base/clock.js";
import { FleetError, isFleetError, option, quote, systemCode } from "../../base/errors.js";
import type { Suspension } from "../../base/usage.js";
import { gatherEvents } from "../../hosts/all-events.js";
import { listUsers, type SuspendedUser, type UserEntry, unknownUser } from "../../hosts/gather.js";
import { describeUser, type UserDescription } from "../../hosts/overview.js";
import { type PurgeReceipt, purgeUser } from "../../hosts/purge.js";
import { audited } from "../../identity/acting.js";
import * as arg from "../../operations/fields.js";
import { unwritable } from "../../runtime/files/server-folder.js";
import { isRunning } from "../../servers/server.js";
import type { FleetParts } from "../parts.js";
import { Group } from "./group.js";
import type { SessionGroup } from "./sessions.js";

/** How long a user's server waits for the turns that a suspension aborts, in milliseconds. Then they are cut. */
const ABORT_MS = 10_000;

export interface PurgeUserOptions {
  /** Erase nothing, and return what would be erased. */
  dryRun?: boolean;
  /** Return an empty receipt for a user of whom the fleet knows nothing. */
  ignoreNotFound?: boolean;
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

  /** Lists the users who have a session, a server or a token, or are suspended, by name. */
  async list(): Promise<UserEntry[]> {
    return await listUsers(this.parts);
  }

  /**
   * Refuses a user at every entry point, with all credentials, until {@link resume}. Turns and connections of the user
   * end within seconds, on all hosts. Stops the user's own servers. Sessions and other data stay. The user may be one
   * whom the fleet does not know.
   *
   * @param options.reason for other operators, in at most 200 characters
   */
  async suspend(user: string, { reason = null }: { reason?: string | null } = {}): Promise<SuspendedUser> {
    const { store, events, hosts } = this.parts;
    const now = new Date(await store.now()).toISOString();
    let suspended: Suspension = { since: now, reason };
    await audited(events, { type: "user.suspended", user, detail: reason }, async () => {
      await store.limits.set(user, (own) => {
        suspended = { since: own.suspended?.since ?? now, reason: reason ?? own.suspended?.reason ?? null };
        return { ...own, suspended };
      });
    });
    const own = (await hosts.recorded()).filter(({ server }) => server.user === user && isRunning(server));
    const { answers } = await hosts.everywhere(async (host) => {
      const ids = own.filter(({ hostName }) => hostName === host.name).map(({ server }) => server.id);
      return await host.stop({ ids, request: { drainTimeoutMs: ABORT_MS } });
    });
    const { sessions = 0, servers = 0, tokens = 0 } = (await this.list()).find((each) => each.user === user) ?? {};
    return {
      user,
      ...suspended,
      known: sessions + servers + tokens > 0,
      stopped: answers.flatMap(({ answer }) => answer),
    };
  }

  /** Ends the suspension of a user. @throws FleetError `FLEET_NAME_NOT_FOUND` */
  async resume(user: string): Promise<{ user: string }> {
    const { store, events } = this.parts;
    if ((await store.limits.read(user))?.suspended === undefined)
      throw new FleetError("FLEET_NAME_NOT_FOUND", `User ${quote(user)} is not suspended.`, {
        suggestions: ["copilotfleet user list"],
      });
    await audited(events, { type: "user.resumed", user }, async () => {
      await store.limits.set(user, ({ suspended: _, ...own }) => own);
    });
    return { user };
  }

  /**
   * Erases all data of a user on all hosts: sessions, histories, homes, tokens, placements, leases and logs. In the
   * ledger and in the events, a pseudonym replaces the name. Stops the user's servers at once. Until the purge is
   * complete, the user cannot begin anything new. If it is interrupted, the user's next purge, or the next gc or
   * `serve` on each host, finishes it.
   *
   * The result lists what remains and why.
   *
   * @throws FleetError `FLEET_NAME_NOT_FOUND`
   */
  async purge(
    user: string,
    { dryRun = false, ignoreNotFound = false, signal = NEVER }: PurgeUserOptions = {},
  ): Promise<PurgeReceipt> {
    return await purgeUser(this.parts, user, { dryRun, ignoreNotFound, signal });
  }

  /**
   * Writes all data of a user to a folder: each session as an archive, and everything else as JSON.
   *
   * @throws FleetError `FLEET_NAME_NOT_FOUND`; `FLEET_USAGE_INVALID` when the folder is not empty.
   */
  async export(user: string, { output, signal = NEVER }: ExportUserOptions): Promise<ExportedUser> {
    const folder = resolve(output);
    const description = await describeUser(this.parts, user);
    if (description === null) throw await unknownUser(this.parts, user);
    await makeEmpty(folder);
    return await audited(
      this.parts.events,
      { type: "user.exported", user },
      async () => await fill({ parts: this.parts, sessions: this.#sessions }, folder, description, signal),
    );
  }

  static {
    Group.guard(UserGroup.prototype, {
      list: [],
      suspend: ["user", arg.options({ reason: arg.label })],
      resume: ["user"],
      purge: ["user", "options"],
      export: ["user", arg.needs(["output"])],
    });
  }
}

export interface ExportedUser {
  user: string;
  /** The absolute path of the folder. */
  folder: string;
  /** The ids of the sessions that have an archive in the folder. */
  sessions: string[];
  /** The sessions that could not be exported, and the reason for each. */
  remains: { session: string; why: string }[];
}

async function fill(
  { parts, sessions }: { parts: FleetParts; sessions: SessionGroup },
  folder: string,
  description: UserDescription,
  signal: AbortSignal,
): Promise<ExportedUser> {
  const { user } = description;
  const exported: string[] = [];
  const remains: ExportedUser["remains"] = [];
  const owned = description.sessions.filter(({ owner }) => owner === user);
  for (const { id } of owned) {
    signal.throwIfAborted();
    try {
      await sessions.export(id, { user, output: join(folder, "sessions", `${id}.tar.gz`), signal });
      exported.push(id);
    } catch (error) {
      // Continue with the other sessions if this one is lost, or is on a host that cannot be reached.
      if (!isFleetError(error)) throw error;
      remains.push({ session: id, why: error.message });
    }
  }
  const usage = await parts.store.usage.read({ from: 0, to: Date.now(), by: "day", user });
  const keyedTurns = await parts.store.keyedTurns.list(user);
  const own = await parts.store.limits.read(user);
  const { suspended = null, limits: max, groups } = own ?? {};
  const limits = own && { limits: max, groups, suspended };
  await write(folder, "user.json", { ...description, limits, exportedAt: new Date().toISOString(), remains });
  await write(folder, "usage.json", { usage });
  await write(folder, "keyed-turns.json", { keyedTurns });
  await write(folder, "events.json", { events: await gatherEvents(parts.hosts, { user }) });
  return { user, folder, sessions: exported, remains };
}

async function makeEmpty(folder: string): Promise<void> {
  try {
    await mkdir(folder, { mode: 0o700 });
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw unwritable(folder, error);
  }
  const names = await readdir(folder).catch((error: unknown) => {
    throw unwritable(folder, error);
  });
  if (names.length > 0) {
    throw new FleetError("FLEET_USAGE_INVALID", `${option("output")} ${quote(folder)} is a folder that is not empty.`, {
      suggestions: ["Choose the name of a new folder."],
    });
  }
  await mkdir(join(folder, "sessions"), { mode: 0o700 });
}

async function write(folder: string, name: string, content: object): Promise<void> {
  const path = join(folder, name);
  await writeFile(path, `${JSON.stringify(content, null, 2)}\n`, { flag: "wx", mode: 0o600 }).catch(
    (error: unknown) => {
      throw unwritable(path, error);
    },
  );
}
