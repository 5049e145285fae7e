import { createHmac, randomBytes } from "node:crypto";
import { linkSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { systemCode } from "../../base/errors.js";
import { parseObject } from "../../base/values/text.js";
import { closeQuietly, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../../store/file/durable.js";
import { readIfThere, writing } from "../../store/file/failures.js";
import { ensureStateFolder } from "../../store/file/state-folder.js";
import type { Store } from "../../store/store.js";
import { type Conceal, hashHolds, type Line } from "./line.js";
import { AuditLog } from "./log.js";

const FILE = "pseudonym-key";
const KEY = /^[0-9a-f]{64}$/;
/** All pseudonyms begin with this character, and no name does. */
const SIGN = "~";
const LENGTH = 26;
const MOST_REMEMBERED = 10_000;

/**
 * The store may be missing: the command `trust` opens none, and one that cannot be reached counts as none. Then this
 * host's own key is used.
 */
type KeyStore = Partial<Pick<Store, "pseudonymKey">>;

/**
 * The pseudonyms of names. A pseudonym is a keyed digest, so that nobody without the key can find its name by trying
 * names. A name has the same pseudonym in the whole fleet.
 *
 * The key file in the state folder of each host has the fleet's key in its first line, so that the log can be written
 * and verified without the store. The other lines are keys that the host used before it joined this fleet.
 */
export class Pseudonyms {
  /**
   * One function for each key: first the fleet's key, and then older keys, because hashes of older lines may depend on
   * them.
   */
  readonly all: readonly [Conceal, ...Conceal[]];

  private constructor([first = "", ...older]: readonly string[]) {
    this.all = [concealing(first), ...older.map(concealing)];
  }

  /**
   * Reads the fleet's key from the store, and saves it in this host's key file. A fleet without a key adopts the key of
   * this host, which is created if necessary.
   */
  static async open(stateRoot: string, store: KeyStore): Promise<Pseudonyms> {
    const known = await ensureKeys(stateRoot);
    const key = await store.pseudonymKey?.(known[0]);
    if (key === undefined || key === known[0]) return new Pseudonyms(known);
    const keys = [key, ...known.filter((each) => each !== key)];
    await replaceKeys(stateRoot, keys);
    return new Pseudonyms(keys);
  }

  /** Reads the keys of this host without creating one. If there is none, this host has written no line so far. */
  static ofExisting(stateRoot: string): Pseudonyms {
    return new Pseudonyms(readKeys(stateRoot) ?? []);
  }

  /** Returns the pseudonym of a name, made with the fleet's key. Returns a pseudonym unchanged. */
  get of(): Conceal {
    return this.all[0];
  }
}

function concealing(hex: string): Conceal {
  const key = Buffer.from(hex, "hex");
  const known = new Map<string, string>();
  return (name) => {
    if (name.startsWith(SIGN)) return name;
    const before = known.get(name);
    if (before !== undefined) return before;
    const pseudonym = SIGN + createHmac("sha256", key).update(name).digest("base64url").slice(0, LENGTH);
    if (known.size >= MOST_REMEMBERED) known.clear();
    known.set(name, pseudonym);
    return pseudonym;
  };
}

type Keys = readonly [string, ...string[]];

function readKeys(stateRoot: string): Keys | undefined {
  const path = join(stateRoot, FILE);
  const text = readIfThere(path, () => readFileSync(path, "utf8"));
  if (text === undefined) return undefined;
  const [first, ...others] = text.trimEnd().split("\n");
  if (first !== undefined && [first, ...others].every((key) => KEY.test(key))) return [first, ...others];
  throw new Error(`${path} does not contain keys of 64 hexadecimal digits, one on each line`);
}

async function ensureKeys(stateRoot: string): Promise<Keys> {
  for (;;) {
    const keys = readKeys(stateRoot);
    if (keys !== undefined) return keys;
    ensureStateFolder(stateRoot);
    await writeKeys(stateRoot, [randomBytes(32).toString("hex")], (temp, path) => {
      try {
        linkSync(temp, path);
      } catch (error) {
        if (systemCode(error) !== "EEXIST") throw error; // EEXIST: another process was first
      }
    });
  }
}

async function replaceKeys(stateRoot: string, keys: readonly string[]): Promise<void> {
  await writeKeys(stateRoot, keys, renameSync);
}

/** @param place moves or links the written file to its path */
async function writeKeys(
  stateRoot: string,
  keys: readonly string[],
  place: (temp: string, path: string) => void,
): Promise<void> {
  const temp = join(stateRoot, scratchName("tmp"));
  const path = join(stateRoot, FILE);
  await writing(path, async () => {
    try {
      closeQuietly(await writeNewFile(temp, Buffer.from(keys.map((key) => `${key}\n`).join(""))));
      place(temp, path);
      await syncFolder(stateRoot);
    } finally {
      unlinkQuietly(temp);
    }
  });
}

/** The names to conceal: a user, and the names that the user gave to sessions and servers. */
export interface Concealed {
  user: string;
  names: readonly string[];
}

/** How many lines to read at once. */
const AT_ONCE = 1_000;

/**
 * Replaces names with pseudonyms in the events of this host. The hash chain stays intact, because the hashes cover
 * pseudonyms in place of names. In events that concern the user, replaces every session id and server id, even one that
 * is not listed in `concealed`, because the end of a session may be recorded after the session's record is gone.
 */
export async function concealInEvents(stateRoot: string, concealed: Concealed, pseudonyms: Pseudonyms): Promise<void> {
  const log = AuditLog.of(stateRoot);
  const rewrite = rewriteOf(concealed, pseudonyms);
  const mayName = (text: string) => rewrite.traces.some((trace) => text.includes(trace));
  for (let after = 0; ; ) {
    const lines = await log.linesAfter(after, AT_ONCE);
    for (const line of lines.filter(({ text }) => mayName(text))) {
      const text = concealedLine(line.text, rewrite);
      if (text !== line.text) await log.replace(line, text);
    }
    if (lines.length < AT_ONCE) return await log.eraseDeleted();
    after = lines.at(-1)?.seq ?? after;
    await setImmediate(); // Let a supervisor do other work in between.
  }
}

interface Rewrite {
  names: ReadonlySet<string>;
  /** Finds one of the names as a whole word. */
  asWord: RegExp;
  /** The user's name, and then the user's pseudonyms. */
  of: readonly string[];
  /** A line needs a change only if it contains at least one of these texts. */
  traces: readonly string[];
  pseudonyms: Pseudonyms;
}

function rewriteOf(concealed: Concealed, pseudonyms: Pseudonyms): Rewrite {
  const names = new Set([concealed.user, ...concealed.names]);
  const of = [concealed.user, ...pseudonyms.all.map((conceal) => conceal(concealed.user))];
  const traces = [...names, ...of].map((name) => JSON.stringify(name).slice(1, -1));
  const escaped = [...names].map((name) => name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  // Letters that a dot, a hyphen or an @ joins form one word, so `al` is not a word in `al.b`.
  const asWord = new RegExp(`(?<![\\p{L}\\p{N}_][.@-]?)(?:${escaped.join("|")})(?![.@-]?[\\p{L}\\p{N}_])`, "u");
  return { names, asWord, of, traces, pseudonyms };
}

function concealedLine(line: string, rewrite: Rewrite): string {
  const { names, of, pseudonyms } = rewrite;
  const parsed = parseObject(line);
  if (parsed === undefined) return line;
  const event = parsed as unknown as Line;
  const conceal: Conceal = pseudonyms.all.find((each) => hashHolds(event, each)) ?? pseudonyms.of;
  const hidden = (value: string | null) => (value !== null && names.has(value) ? conceal(value) : value);
  // Only the user's own name counts here, because a listed session name may also be the name of another user.
  const hiddenUser = (name: string | null) => (name === of[0] ? conceal(name) : name);
  const isOfUser = includes(of, event.user);
  const hiddenId = (id: string | null) => (isOfUser && id !== null ? conceal(id) : hidden(id));
  return JSON.stringify({
    ...event,
    actor: { ...event.actor, user: hiddenUser(event.actor.user), os: hiddenUser(event.actor.os) },
    user: hiddenUser(event.user),
    sessionId: hiddenId(event.sessionId),
    serverId: hiddenId(event.serverId),
    detail: event.detail !== null && isTelling(event, event.detail, rewrite) ? conceal(event.detail) : event.detail,
  });
}

/** Whether the detail of an event contains a name, or a text that the user wrote. */
function isTelling({ type, actor, user }: Line, detail: string, { names, asWord, of }: Rewrite): boolean {
  if (type === "events.shortened") return false;
  // These details contain a text that somebody typed: a reason, or the label of a token.
  if (type === "session.stolen" && includes(of, actor.user)) return true;
  if (type === "user.suspended" && (includes(of, actor.user) || includes(of, user))) return true;
  if (includes(of, user) && detail.includes(", label ")) return true;
  // In an event that concerns the user, a longer word with one of the names in it may be another name that the user
  // chose, so look for any part of the text. In other events, look for whole words.
  return includes(of, user) ? [...names].some((name) => detail.includes(name)) : asWord.test(detail);
}

function includes(of: readonly string[], name: string | null): boolean {
  return name !== null && of.includes(name);
}
