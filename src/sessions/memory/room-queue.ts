import { mkdirSync, readdirSync, statSync, unlinkSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import { userDigest } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { isAlive, ownIdentity } from "../../runtime/process/process-table.js";

/** A waiter shows this often that it still waits, and counts no more if it was silent for longer than the second time. */
const RENEW_MS = 300;
const SILENT_MS = 2_000;
/** How long a process relies on its last look at the queue, in milliseconds. */
const LOOK_MS = 10;
/** How many waiters from the head of the queue may try at once, so that several free places are filled at once. */
const TRYING = 3;
const SEPARATOR = "~";
const SERVED = "served";

let sequence = 0;

interface Waiter {
  name: string;
  user: string;
  /** When it came, in milliseconds since the epoch. */
  sinceMs: number;
}

/** The last look at each queue, by its folder. All waiters of this process share it. */
const looks = new Map<string, { atMs: number; heads: Set<string>; length: number }>();

/**
 * The place of one use in the queue for room in a server's memory (`session.maxActive`). Each waiter is an empty file in a
 * folder of the server, which all processes see. The next place belongs to the user who got one the longest ago, and among the
 * uses of one user to the one that came first. So a user with many waiting prompts does not hold up the others.
 */
export class RoomQueue implements Disposable {
  readonly #user: string;
  #place: { folder: string; name: string; renewedMs: number } | undefined;

  constructor(user: string) {
    this.#user = userDigest(user);
  }

  /** Whether this use may look for room now: nobody waits, or it is its turn. If not, it waits from now on. */
  mayEnter({ home }: ServerRecord): boolean {
    const folder = join(dirname(home), "waits");
    if (this.#place !== undefined && this.#place.folder !== folder) this.leave();
    if (this.#place === undefined && lookAt(folder).length === 0) return true;
    this.#wait(folder);
    return lookAt(folder).heads.has(this.#place?.name ?? "");
  }

  /** Waits for room, if this use does not wait yet. */
  waitAt({ home }: ServerRecord): void {
    this.#wait(join(dirname(home), "waits"));
  }

  #wait(folder: string): void {
    const now = Date.now();
    if (this.#place === undefined) {
      const { pid, startTicks, bootId } = ownIdentity();
      const name = [this.#user, now, pid, startTicks, bootId, sequence++].join(SEPARATOR);
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      writeFileSync(join(folder, name), "", { flag: "wx", mode: 0o600 });
      this.#place = { folder, name, renewedMs: now };
      looks.delete(folder);
    } else if (now - this.#place.renewedMs > RENEW_MS) {
      touch(join(folder, this.#place.name), now);
      this.#place.renewedMs = now;
    }
  }

  /** This use got room. */
  enter(): void {
    if (this.#place === undefined) return;
    const { folder } = this.#place;
    touch(join(folder, `${SERVED}${SEPARATOR}${this.#user}`), Date.now());
    this.leave();
  }

  leave(): void {
    if (this.#place === undefined) return;
    const { folder, name } = this.#place;
    this.#place = undefined;
    remove(join(folder, name));
    looks.delete(folder);
  }

  [Symbol.dispose](): void {
    this.leave();
  }
}

function lookAt(folder: string): { heads: Set<string>; length: number } {
  const known = looks.get(folder);
  const now = performance.now();
  if (known !== undefined && now - known.atMs < LOOK_MS) return known;
  if (looks.size > 1_000) looks.clear();
  const look = { atMs: now, ...headsOf(folder) };
  looks.set(folder, look);
  return look;
}

/** The waiters at the head of the queue, and how many wait altogether. */
function headsOf(folder: string): { heads: Set<string>; length: number } {
  const served = new Map<string, number>();
  const byUser = new Map<string, Waiter[]>();
  const names = namesIn(folder);
  for (const name of names) {
    const [user = "", since = ""] = name.split(SEPARATOR);
    if (user === SERVED) served.set(since, timeOf(join(folder, name)));
    else byUser.set(user, [...(byUser.get(user) ?? []), { name, user, sinceMs: Number(since) }]);
  }
  for (const waiters of byUser.values()) waiters.sort((a, b) => a.sinceMs - b.sinceMs || (a.name < b.name ? -1 : 1));
  const lastOf = (user: string) => served.get(user) ?? 0;
  const users = [...byUser].sort(
    ([one, [a]], [other, [b]]) => lastOf(one) - lastOf(other) || (a?.sinceMs ?? 0) - (b?.sinceMs ?? 0),
  );
  const heads = new Set<string>();
  const most = Math.max(0, ...users.map(([, waiters]) => waiters.length));
  let gone = 0;
  for (let rank = 0; rank < most && heads.size < TRYING; rank++) {
    for (const [, waiters] of users) {
      const waiter = waiters[rank];
      if (waiter === undefined || heads.size >= TRYING) continue;
      if (waits(folder, waiter)) heads.add(waiter.name);
      else gone++;
    }
  }
  const length = users.reduce((sum, [, waiters]) => sum + waiters.length, 0) - gone;
  return { heads, length };
}

/** Whether the waiter still waits. Removes it if its process has ended. */
function waits(folder: string, { name }: Waiter): boolean {
  const path = join(folder, name);
  const [, , pid, startTicks = "", bootId = ""] = name.split(SEPARATOR);
  if (isAlive({ ...ownIdentity(), pid: Number(pid), startTicks, bootId })) return Date.now() - timeOf(path) < SILENT_MS;
  remove(path);
  return false;
}

function namesIn(folder: string): string[] {
  // Most servers never had a queue, and an exception takes longer than this check.
  if (statSync(folder, { throwIfNoEntry: false }) === undefined) return [];
  return readdirSync(folder);
}

function timeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

function touch(path: string, nowMs: number): void {
  const now = new Date(nowMs);
  try {
    utimesSync(path, now, now);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
    writeFileSync(path, "", { mode: 0o600 });
  }
}

function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}
