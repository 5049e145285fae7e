import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../../../errors.js";
import { userDigest } from "../../../../model/ids.js";
import type {
  OwnLimits,
  Slot,
  SlotAnswer,
  SlotKind,
  SlotRequest,
  SlotsUsed,
  UserLimitRecord,
} from "../../../../model/usage/user-limits.js";
import { system } from "../../../../system/system.js";
import type { SessionStore } from "../../../ports.js";
import { bootName, hasGone, ownHolder } from "../../../usage/holder.js";
import { type LimitStore, NEAR_MS } from "../../../usage/limits-port.js";
import type { StoreContext } from "../../context.js";
import { mediumError } from "../../failures.js";
import { RecordFiles } from "../record-files.js";
import { RecordFolder } from "../record-folder.js";
import { SlotLog } from "./slot-log.js";

/** How many logs a process keeps in memory. */
const MOST_LOGS = 10_000;

/** The users' own limits and suspensions, in a document per user; their groups, in a file per user; and logs of the slots in use. */
export class LimitRecords implements LimitStore {
  readonly #context: StoreContext;
  readonly #sessions: Pick<SessionStore, "ids" | "count">;
  readonly limits: RecordFolder<OwnLimits & Pick<UserLimitRecord, "user">>;
  readonly #groups: RecordFiles<Pick<UserLimitRecord, "user" | "groups">>;
  readonly #logs = new Map<string, SlotLog>();

  constructor(context: StoreContext, sessions: Pick<SessionStore, "ids" | "count">) {
    this.#context = context;
    this.#sessions = sessions;
    this.limits = new RecordFolder(context, {
      name: "limits",
      title: (id) => `the limits of a user (${id})`,
      durable: true,
      ifDamaged: "The fleet uses the previous revision.",
    });
    // A damaged record counts as missing, because the user's next sign-on writes it again.
    this.#groups = new RecordFiles(context, "limit-groups", null);
  }

  async read(user: string): Promise<UserLimitRecord | null> {
    const name = userDigest(user);
    const groups = this.#groups.read(name)?.groups ?? [];
    // Most users have no limits of their own, and this check takes less time than a read.
    const { limits = {}, suspended } = (this.limits.has(name) && this.limits.read(name)) || {};
    if (suspended !== undefined) return { user, limits, suspended, groups };
    return Object.keys(limits).length + groups.length === 0 ? null : { user, limits, groups };
  }

  async list(): Promise<UserLimitRecord[]> {
    const users = [...(await this.limits.list()), ...this.#groups.list()].map(({ user }) => user);
    const records = await Promise.all([...new Set(users)].map(async (user) => await this.read(user)));
    return records.filter((record) => record !== null);
  }

  async set(user: string, change: (own: OwnLimits) => OwnLimits): Promise<void> {
    const name = userDigest(user);
    const update = (draft: OwnLimits) => {
      const { limits, suspended } = change(draft);
      draft.limits = limits;
      if (suspended === undefined) delete draft.suspended;
      else draft.suspended = suspended;
      return true;
    };
    while ((await this.limits.update(name, update)) === undefined) {
      const own = change({ limits: {} });
      const isEmpty = Object.keys(own.limits).length === 0 && own.suspended === undefined;
      if (isEmpty || (await this.limits.create(name, { user, ...own }))) return;
    }
  }

  async clear(user: string): Promise<boolean> {
    const name = userDigest(user);
    const own = this.limits.readOr(name, "damaged");
    if (own === "damaged") return await this.limits.delete(name);
    // Change the record, because somebody may suspend the user at this moment.
    if (own !== null) await this.set(user, (latest) => ({ ...latest, limits: {} }));
    return own !== null && Object.keys(own.limits).length > 0;
  }

  async noteGroups(user: string, groups: readonly string[]): Promise<void> {
    if (groups.length === 0) await this.#groups.delete(userDigest(user));
    else await this.#groups.replace(userDigest(user), { user, groups });
  }

  async take(request: SlotRequest): Promise<SlotAnswer> {
    this.#context.ensureRoot();
    const log = this.#logOf(request.user);
    try {
      const answer = await this.#take(log, request);
      // Before a refusal, free the slots of processes that were killed, and try again if there were any.
      const isFinal = answer.granted || !freeGone(log);
      if (isFinal && log.isLong) {
        freeGone(log);
        log.seal();
      }
      return isFinal ? answer : await this.#take(log, request);
    } catch (error) {
      throw mediumError("write", this.#context.root, error);
    }
  }

  async #take(log: SlotLog, { user, kind, id, most, perMinute }: SlotRequest): Promise<SlotAnswer> {
    const now = Math.round(system().clock.nowMs());
    const isSession = kind === "session";
    const answer = log.append(["take", id, kind, ownHolder(), now, isSession ? null : most, perMinute]);
    if (!answer.granted) return answer;
    if (!isSession || most === null) return { granted: true };
    const giveBack = () => log.appendLater(["end", id, false, ownHolder()]);
    const used = await this.#sessionsOf(user, answer.earlier, most).catch((error: unknown) => {
      giveBack();
      throw error;
    });
    if (used < most) return { granted: true };
    giveBack();
    return { granted: false, reached: "most", used, retryAfterMs: null };
  }

  /**
   * How many sessions the user has: the recorded sessions, and the sessions under creation whose slots are earlier than
   * the caller's slot. Call it only once the caller has its slot. This count misses no session: if the slot of a
   * session has already ended, the session is recorded by now, or its creation has failed.
   */
  async #sessionsOf(user: string | null, earlier: readonly string[], most: number): Promise<number> {
    const count = async () => {
      const ids = await this.#sessions.ids(user);
      return { recorded: ids.length, all: new Set([...ids, ...earlier.map((slot) => slot.split("~")[0])]).size };
    };
    const { recorded, all } = await count();
    if (all < most) return all;
    // After a crash, `ids` may include sessions that have no record. `count` removes them.
    await this.#sessions.count(user, recorded);
    return (await count()).all;
  }

  async giveBack({ user, id }: Slot, hasBegun: boolean): Promise<void> {
    this.#logOf(user).appendLater(["end", id, hasBegun, ownHolder()]);
  }

  async used(user: string): Promise<SlotsUsed> {
    this.#context.checkRoot();
    const state = this.#logOf(user).read();
    const count = (kind: SlotKind) =>
      state.idsOf(kind).filter((id) => hasGone(state.slots.get(id)?.holder ?? "") === false).length;
    return {
      turnsPerMinute: state.begunSince(system().clock.nowMs()),
      concurrentTurns: count("turn"),
      connections: count("connection"),
    };
  }

  async isFirst(user: string, name: string, from: number): Promise<boolean> {
    this.#context.ensureRoot();
    const folder = this.#folderOf(user);
    const prefix = `near-${name}-`;
    const path = join(folder, `${prefix}${from}`);
    try {
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      for (const other of readdirSync(folder).filter((each) => each.startsWith(prefix))) {
        const period = Number(other.slice(prefix.length));
        if (period > from && period < from + NEAR_MS) return false;
        if (period !== from) rmSync(join(folder, other), { force: true });
      }
      writeFileSync(path, "", { flag: "wx", mode: 0o600 });
      return true;
    } catch (error) {
      if (systemCode(error) === "EEXIST") return false;
      throw mediumError("write", folder, error);
    }
  }

  async forget(user: string): Promise<void> {
    await this.limits.delete(userDigest(user));
    await this.noteGroups(user, []);
    rmSync(this.#folderOf(user), { recursive: true, force: true });
    this.#logs.delete(this.#folderOf(user));
  }

  #logOf(user: string | null): SlotLog {
    const folder = this.#folderOf(user);
    let log = this.#logs.get(folder);
    if (log !== undefined) return log;
    if (this.#logs.size >= MOST_LOGS) this.#logs.clear();
    log = new SlotLog(folder, bootName());
    this.#logs.set(folder, log);
    return log;
  }

  #folderOf(user: string | null): string {
    return join(this.#context.root, "slots", user === null ? "all" : userDigest(user));
  }
}

/**
 * Frees the slots of processes that have ended. A state folder belongs to one host. So a process in another PID
 * namespace was in an earlier container of this host, and ended with that container.
 *
 * @returns whether there were any such slots
 */
function freeGone(log: SlotLog): boolean {
  const gone = [...log.read().slots].filter(([, { holder }]) => hasGone(holder) !== false);
  for (const [id] of gone) log.append(["end", id, true, ownHolder()]);
  return gone.length > 0;
}
