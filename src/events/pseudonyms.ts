import { createHmac, randomBytes } from "node:crypto";
import { linkSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../errors.js";
import { closeQuietly, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../store/file/commit/durable.js";
import { readIfThere, writing } from "../store/file/failures.js";
import { ensureStateFolder } from "../store/file/state-folder.js";
import type { Store } from "../store/ports.js";
import type { Conceal } from "./line.js";

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
