import { mkdirSync, readdirSync, statSync, unlinkSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { countOf } from "../../config/values/text.js";
import { FleetError, option, systemCode } from "../../errors.js";
import { userDigest } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { usedSessions } from "../../pool/use-markers.js";
import { pause } from "../../runtime/clock.js";
import { isAlive, ownIdentity } from "../../runtime/process/process-table.js";
import { type EvictionContext, unloadOldest } from "./eviction.js";
import { knownLoaded } from "./open-notes.js";

/** How often a waiter refreshes its file, in milliseconds. */
const RENEW_MS = 300;
/** A waiter that has not refreshed its file for this long, in milliseconds, no longer counts. */
const SILENT_MS = 2_000;
/** How long a process relies on its last look at the queue, in milliseconds. */
const LOOK_MS = 10;
/** How often a waiter looks at the queue, in milliseconds. */
const POLL_MS = 25;
/** After this time, in milliseconds, a queue without waiters forgets that a user got room. */
const REMEMBERED_MS = 60_000;
const SEPARATOR = "~";
const SERVED = "served";

let sequence = 0;

/** For each queue, by its folder: the first waiter at the last look (`head`). All waiters of this process share it. */
const looks = new Map<string, { atMs: number; head: string | undefined }>();

/**
 * The place of one use in the queue for room in a server's memory (`session.maxActive`). Each waiter is an empty file
 * in a folder of the server, which all processes see. Among the waiting users, the one who got room the longest ago is
 * next. Among the uses of one user, the earliest is next. So a user with many waiting prompts does not hold up other
 * users.
 */
export class RoomQueue implements Disposable {
  readonly #user: string;
  #place: { folder: string; name: string; renewedMs: number } | undefined;

  constructor(user: string) {
    this.#user = userDigest(user);
  }

  /**
   * Whether this use may look for room now: nobody waits, or this use is first in the queue. Otherwise, adds this use
   * to the queue. Only the first use may look, because two uses that look at once count each other, and neither finds
   * room.
   */
  mayEnter({ home }: ServerRecord): boolean {
    const folder = join(dirname(home), "waits");
    if (this.#place !== undefined && this.#place.folder !== folder) this.leave();
    if (this.#place === undefined && headOf(folder) === undefined) return true;
    this.#wait(folder);
    return [undefined, this.#place?.name].includes(headOf(folder));
  }

  /** Waits until this use may look for room again, until `ms` milliseconds have passed, or until `signal` aborts. */
  async untilHead(server: ServerRecord, ms: number, signal: AbortSignal | undefined): Promise<void> {
    const untilMs = performance.now() + ms;
    do await pause(POLL_MS, undefined);
    while (!this.mayEnter(server) && performance.now() < untilMs && signal?.aborted !== true);
  }

  /** Adds this use to the queue, or refreshes its file there. Returns at once. */
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

  /** Records that this use got room, and leaves the queue. */
  enter(): void {
    if (this.#place === undefined) return;
    const { folder } = this.#place;
    touch(join(folder, servedName(this.#user)), Date.now());
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

/** The file name of the first waiter in the queue. Undefined if nobody waits. */
function headOf(folder: string): string | undefined {
  const known = looks.get(folder);
  const now = performance.now();
  if (known !== undefined && now - known.atMs < LOOK_MS) return known.head;
  if (looks.size > 1_000) looks.clear();
  const head = findHead(folder);
  looks.set(folder, { atMs: now, head });
  return head;
}

function findHead(folder: string): string | undefined {
  const waiting = new Map<string, string[]>();
  const served: string[] = [];
  for (const name of namesIn(folder)) {
    const user = name.slice(0, name.indexOf(SEPARATOR));
    if (user === SERVED) served.push(name);
    else waiting.set(user, [...(waiting.get(user) ?? []), name]);
  }
  const users = [...waiting].map(([user, names]) => ({
    lastMs: timeOf(join(folder, servedName(user))),
    names: names.sort((a, b) => sinceOf(a) - sinceOf(b) || sequenceOf(a) - sequenceOf(b)),
  }));
  users.sort((one, other) => one.lastMs - other.lastMs || sinceOf(one.names[0]) - sinceOf(other.names[0]));
  for (const { names } of users) for (const name of names) if (waits(folder, name)) return name;
  for (const name of served) if (Date.now() - timeOf(join(folder, name)) > REMEMBERED_MS) remove(join(folder, name));
  return undefined;
}

/** When a waiter joined the queue, in milliseconds since the epoch. */
function sinceOf(name = ""): number {
  return Number(name.split(SEPARATOR)[1]);
}

/** Orders the waiters of one process that joined the queue in the same millisecond. */
function sequenceOf(name: string): number {
  return Number(name.split(SEPARATOR).at(-1));
}

function servedName(user: string): string {
  return `${SERVED}${SEPARATOR}${user}`;
}

/**
 * Whether a waiter's process is alive and has refreshed the waiter's file. Removes the file if the process has ended.
 */
function waits(folder: string, name: string): boolean {
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
    create(path);
  }
}

function create(path: string): void {
  try {
    writeFileSync(path, "", { mode: 0o600 });
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error; // ENOENT: the server was deleted
  }
}

function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}

/**
 * Makes room for one more session in a server's memory. If the server already has `maxActive` sessions in memory,
 * unloads the least recently used sessions that are neither in use nor under a lease, until there is room. The caller
 * must have set the new session's use marker. So if two callers come at once, at least one of them counts both
 * sessions.
 *
 * @returns false if not enough sessions could be unloaded
 */
export async function makeRoom(
  server: ServerRecord,
  id: string,
  maxActive: number,
  context: EvictionContext,
): Promise<boolean> {
  const used = usedSessions(server).add(id);
  const idle = knownLoaded(server).filter((loaded) => !used.has(loaded));
  const excess = idle.length + used.size - maxActive;
  if (excess <= 0) return true;
  // Many callers may come at once, and a server accepts at most 128 connections (measured with runtime 1.0.85). So do
  // not connect if there cannot be enough room.
  if (idle.length < excess) return false;
  const { evicted } = await unloadOldest(server, excess, used, context);
  return evicted.length === excess;
}

export function exhausted(server: ServerRecord, maxActive: number): FleetError {
  const message = `Server ${server.id} has ${countOf(maxActive, "session")} in memory (session.maxActive), and none of them is idle.`;
  return new FleetError("FLEET_SESSIONS_EXHAUSTED", message, {
    suggestions: [
      "copilotfleet list --state active",
      `Wait longer with ${option("wait", "2m")}.`,
      "Raise session.maxActive.",
    ],
  });
}
