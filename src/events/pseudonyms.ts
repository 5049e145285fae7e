import { createHmac, randomBytes } from "node:crypto";
import { linkSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../errors.js";
import { closeQuietly, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../store/file/commit/durable.js";
import { readIfThere, writing } from "../store/file/failures.js";
import { ensureStateFolder } from "../store/file/state-folder.js";

const FILE = "pseudonym-key";
const KEY = /^[0-9a-f]{64}\n?$/;
/** All pseudonyms begin with this character, with which no name begins. */
const SIGN = "~";
const LENGTH = 26;
const MOST_REMEMBERED = 10_000;

/**
 * The pseudonyms of names: keyed digests, so that nobody without the key can find out whose pseudonym one is by trying names.
 * A name always has the same pseudonym.
 */
export class Pseudonyms {
  readonly #key: Buffer;
  readonly #known = new Map<string, string>();

  constructor(key: Buffer) {
    this.#key = key;
  }

  /** Reads the key of the state folder, and creates it if there is none. */
  static async open(stateRoot: string): Promise<Pseudonyms> {
    return new Pseudonyms(readKey(stateRoot) ?? (await createKey(stateRoot)));
  }

  /** For reading only: without a key, there are no pseudonyms so far. */
  static ofExisting(stateRoot: string): Pseudonyms {
    return new Pseudonyms(readKey(stateRoot) ?? Buffer.alloc(0));
  }

  /** The pseudonym of a name. The pseudonym of a pseudonym is the same. */
  readonly of = (name: string): string => {
    if (name.startsWith(SIGN)) return name;
    const known = this.#known.get(name);
    if (known !== undefined) return known;
    const digest = createHmac("sha256", this.#key).update(name).digest("base64url").slice(0, LENGTH);
    if (this.#known.size >= MOST_REMEMBERED) this.#known.clear();
    this.#known.set(name, SIGN + digest);
    return SIGN + digest;
  };
}

function readKey(stateRoot: string): Buffer | undefined {
  const path = join(stateRoot, FILE);
  const text = readIfThere(path, () => readFileSync(path, "utf8"));
  if (text === undefined) return undefined;
  if (KEY.test(text)) return Buffer.from(text.trim(), "hex");
  throw new Error(`${path} does not contain a key of 64 hexadecimal digits`);
}

async function createKey(stateRoot: string): Promise<Buffer> {
  const temp = join(stateRoot, scratchName("tmp"));
  const path = join(stateRoot, FILE);
  ensureStateFolder(stateRoot);
  await writing(path, async () => {
    try {
      closeQuietly(await writeNewFile(temp, Buffer.from(`${randomBytes(32).toString("hex")}\n`)));
      linkSync(temp, path); // fails if another process was first
      await syncFolder(stateRoot);
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
    } finally {
      unlinkQuietly(temp);
    }
  });
  return readKey(stateRoot) ?? (await createKey(stateRoot));
}
