import {
  closeSync,
  constants,
  fstatSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../../base/errors.js";
import { userDigest } from "../../../base/ids.js";
import { system } from "../../../base/system/system.js";
import {
  MINUTE_MS,
  type OwnLimits,
  type Slot,
  type SlotAnswer,
  type SlotKind,
  type SlotRequest,
  type SlotsUsed,
  type UserLimitRecord,
} from "../../../base/usage.js";
import { bootName, hasGone, type LimitStore, NEAR_MS, ownHolder, type SessionStore } from "../../ports.js";
import { scratchName, unlinkQuietly } from "../durable.js";
import { mediumError, type StoreContext } from "../failures.js";
import { RecordFiles, RecordFolder } from "./record-folder.js";

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

/** An entry of the log, as JSON. `id` is random, so no two entries are equal. */
type Entry =
  | readonly [
      "take",
      id: string,
      kind: SlotKind,
      holder: string,
      atMs: number,
      most: number | null,
      perMinute: number | null,
    ]
  | readonly ["end", id: string, began: boolean, by: string]
  | readonly ["slot", id: string, kind: SlotKind, holder: string]
  | readonly ["begun", id: string, atMs: number]
  | readonly ["seal"];

/** The answer to an entry. Only a `take` can be refused. */
type Answer =
  | { granted: true; earlier: readonly string[] }
  | { granted: false; reached: "most" | "perMinute"; used: number; retryAfterMs: number | null };

interface TakenSlot {
  kind: SlotKind;
  holder: string;
}

function readEntry(line: string): Entry | null {
  if (!line.startsWith("[")) return null;
  try {
    return JSON.parse(line) as Entry;
  } catch {
    return null; // a full disk cut the line off
  }
}

/** The state after some entries. It depends on the entries alone, so every process computes the same state. */
class SlotState {
  readonly slots = new Map<string, TakenSlot>();
  /** When each turn of the last minute began, in milliseconds since the boot of the machine. */
  readonly begun = new Map<string, number>();
  isSealed = false;
  #lastMs = 0;

  apply(entry: Entry): Answer {
    switch (entry[0]) {
      case "take":
        return this.#take(entry);
      case "end":
        this.slots.delete(entry[1]);
        if (!entry[2]) this.begun.delete(entry[1]);
        break;
      case "slot":
        this.slots.set(entry[1], { kind: entry[2], holder: entry[3] });
        break;
      case "begun":
        this.begun.set(entry[1], entry[2]);
        break;
      case "seal":
        this.isSealed = true;
        break;
    }
    return { granted: true, earlier: [] };
  }

  #take([, id, kind, holder, atMs, most, perMinute]: Extract<Entry, readonly ["take", ...unknown[]]>): Answer {
    this.#lastMs = Math.max(this.#lastMs, atMs);
    for (const [old, begunMs] of this.begun) if (begunMs <= this.#lastMs - MINUTE_MS) this.begun.delete(old);
    const earlier = this.idsOf(kind);
    if (perMinute !== null && this.begun.size >= perMinute) {
      // The start of the turn that must become more than a minute old before another turn may begin.
      const leaving = [...this.begun.values()].sort((a, b) => a - b)[this.begun.size - perMinute] ?? atMs;
      const retryAfterMs = Math.max(1, Math.ceil(leaving + MINUTE_MS - atMs));
      return { granted: false, reached: "perMinute", used: this.begun.size, retryAfterMs };
    }
    if (most !== null && earlier.length >= most)
      return { granted: false, reached: "most", used: earlier.length, retryAfterMs: null };
    if (kind !== "prompt") this.slots.set(id, { kind, holder });
    if (kind === "turn" || kind === "prompt") this.begun.set(id, atMs);
    return { granted: true, earlier };
  }

  idsOf(kind: SlotKind): string[] {
    return [...this.slots].filter(([, slot]) => slot.kind === kind).map(([id]) => id);
  }

  /** How many turns began in the minute before this time. */
  begunSince(nowMs: number): number {
    return [...this.begun.values()].filter((atMs) => atMs > nowMs - MINUTE_MS).length;
  }

  /** The number of entries in {@link start}. */
  get size(): number {
    return this.slots.size + this.begun.size;
  }

  /** The entries with which a new log begins, so that its state is the same as this state. */
  start(): Entry[] {
    const slots = [...this.slots].map(([id, { kind, holder }]) => ["slot", id, kind, holder] as const);
    return [...slots, ...[...this.begun].map(([id, atMs]) => ["begun", id, atMs] as const)];
  }
}

/** A log that is longer than this, in bytes, may be sealed: see {@link SlotLog.isLong}. */
const LONGEST = 64 * 1024;
const NAME = /^([a-z0-9]{8})-(\d{1,12})\.log$/;

/**
 * A log of the slots that one user has in use. Every process appends to it, with one write for each entry. The
 * operating system puts the entries in one order. Each process reads the log and applies the same rules, so all
 * processes agree on which entries were granted. So the limits are exact without a lock, and a process that is killed
 * at any point leaves nothing half done.
 *
 * The first `seal` entry ends a log: later entries in it do not count, and their writers append them to the next log.
 * Every process computes the same first entries for the next log, so it does not matter which process creates it.
 *
 * Nothing here is synced to disk, because no slot survives a restart of the machine: a log's name contains the boot,
 * and logs of earlier boots are ignored.
 */
export class SlotLog {
  readonly #folder: string;
  readonly #boot: string;
  /** The log that was read last: its number, its inode, the bytes read so far, and the state after these bytes. */
  #number = -1;
  #inode = -1;
  #offset = 0;
  #state = new SlotState();
  /** How many entries were read. Many of them may no longer affect the state. */
  #entries = 0;
  /** Entries that free slots, but could not be written (a full disk). The next `append` writes them before its own. */
  #unwritten: Entry[] = [];

  /** @param boot 8 letters and digits that name the boot of the machine */
  constructor(folder: string, boot: string) {
    this.#folder = folder;
    this.#boot = boot;
  }

  /** The current state. */
  read(): SlotState {
    if (this.#numbers().length > 0) this.#use((fd) => this.#follow(fd));
    return this.#state;
  }

  /** Appends an entry. @returns the answer to it. @throws a system error if it cannot be written */
  append(entry: Entry): Answer {
    for (;;) {
      const answer = this.#use((fd) => {
        writeEntries(fd, [...this.#unwritten, entry]);
        return this.#follow(fd, entry);
      });
      if (answer === undefined) continue; // others have sealed the log before this entry
      this.#unwritten = [];
      return answer;
    }
  }

  /** Like {@link append}, for an entry that frees a slot. If it cannot be written now, the next call writes it. */
  appendLater(entry: Entry): void {
    try {
      this.append(entry);
    } catch (error) {
      if (systemCode(error) === undefined) throw error;
      if (!this.#unwritten.includes(entry)) this.#unwritten.push(entry);
    }
  }

  /** Whether the log should be sealed now. If most of its entries still count, sealing would only copy them. */
  get isLong(): boolean {
    return this.#offset > LONGEST && this.#entries > 2 * this.#state.size;
  }

  seal(): void {
    this.#use((fd) => {
      writeEntries(fd, [["seal"]]);
      this.#follow(fd);
    });
  }

  /** Calls `work` with the newest log that is not sealed. Creates that log if necessary. */
  #use<T>(work: (fd: number) => T): T {
    for (;;) {
      const fd = this.#open();
      if (fd === undefined) continue;
      try {
        const { ino, size } = fstatSync(fd);
        if (ino !== this.#inode || size < this.#offset) {
          this.#inode = ino;
          this.#offset = 0;
          this.#entries = 0;
          this.#state = new SlotState();
        }
        this.#follow(fd);
        if (!this.#state.isSealed) return work(fd);
      } finally {
        closeSync(fd);
      }
      this.#create(this.#number + 1, this.#state.start());
    }
  }

  /** Opens the log. @returns undefined if it disappeared, because other processes have sealed it and the next log */
  #open(): number | undefined {
    if (this.#number < 0 || this.#state.isSealed) {
      const newest = this.#numbers().at(-1);
      if (newest === undefined) this.#create(0, []);
      this.#number = this.#numbers().at(-1) ?? 0;
      // Forget the inode number, because this log may have the number of a deleted log.
      this.#inode = -1;
    }
    try {
      return openSync(this.#path(this.#number), constants.O_RDWR | constants.O_APPEND);
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw error;
      this.#number = -1;
      return undefined;
    }
  }

  /** Creates a log with its first entries, unless it exists. Removes older logs, except the one directly before it. */
  #create(number: number, entries: readonly Entry[]): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    const temp = join(this.#folder, scratchName("tmp"));
    try {
      writeFileSync(temp, textOf(entries), { flag: "wx", mode: 0o600 });
      linkSync(temp, this.#path(number));
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
    } finally {
      unlinkQuietly(temp);
    }
    for (const name of readdirSync(this.#folder)) {
      const [, boot, older] = NAME.exec(name) ?? [];
      const isOld = boot !== undefined && (boot !== this.#boot || Number(older) < number - 1);
      if (isOld) rmSync(join(this.#folder, name), { force: true });
    }
  }

  /** Reads what was appended since the last read. @returns the answer to `own`, or undefined if it is not in the log */
  #follow(fd: number, own?: Entry): Answer | undefined {
    let answer: Answer | undefined;
    const ownLine = own === undefined ? undefined : JSON.stringify(own);
    const bytes = Buffer.alloc(Math.max(0, fstatSync(fd).size - this.#offset));
    const length = bytes.length === 0 ? 0 : readSync(fd, bytes, 0, bytes.length, this.#offset);
    // Leave out an incomplete last line, because another process may still be writing it.
    const end = bytes.lastIndexOf(10, length - 1) + 1;
    this.#offset += end;
    for (const line of bytes.toString("utf8", 0, end).split("\n")) {
      const entry = readEntry(line);
      if (entry === null || this.#state.isSealed) continue;
      this.#entries++;
      const given = this.#state.apply(entry);
      if (line === ownLine) answer = given;
    }
    return answer;
  }

  /** The numbers of the logs of this boot, in order. */
  #numbers(): number[] {
    try {
      return readdirSync(this.#folder)
        .flatMap((name) => {
          const [, boot, number] = NAME.exec(name) ?? [];
          return boot === this.#boot ? [Number(number)] : [];
        })
        .sort((a, b) => a - b);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      throw error;
    }
  }

  #path(number: number): string {
    return join(this.#folder, `${this.#boot}-${number}.log`);
  }
}

/** An entry begins with an empty line, so that it does not continue a line that a full disk has cut off. */
function textOf(entries: readonly Entry[]): string {
  return entries.map((entry) => `\n${JSON.stringify(entry)}\n`).join("");
}

function writeEntries(fd: number, entries: readonly Entry[]): void {
  const bytes = Buffer.from(textOf(entries));
  const written = writeSync(fd, bytes);
  if (written < bytes.length) throw Object.assign(new Error("write() wrote a part"), { code: "ENOSPC" });
}
