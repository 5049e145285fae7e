import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { linkSync, rmSync, type Stats, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readValueFile } from "../../../config/load/value-file.js";
import { shellQuote } from "../../../config/values/text.js";
import { FleetError, isFleetError, quote, systemCode } from "../../../errors.js";
import { mediumError } from "../../file/failures.js";
import { ensureStateFolder } from "../../file/state-folder.js";

const KEY = /^[0-9a-f]{64}$/;
/** How often the signer checks whether the key file has changed, in milliseconds. */
const LOOK_MS = 1_000;

interface SigningKey {
  /** The beginning of the key's hash. It names the key in signatures and messages. */
  id: string;
  secret: Buffer;
}

/** `outdated`: the signature is valid, but was made with a key other than the first. */
export type Verdict = "good" | "outdated" | "unsigned" | "unknown-key" | "wrong";

/**
 * Signs the records in Redis, and verifies their signatures (HMAC-SHA256). Everybody with write access to Redis can
 * write records, but only the fleet's hosts can sign them. The key file has one key of 64 hexadecimal digits on each
 * line. The first key signs, and all keys verify, so that the key can be replaced while the fleet is running.
 */
export class Signer {
  readonly path: string;
  readonly #root: string;
  readonly #isOwn: boolean;
  readonly #where: string;
  #keys: readonly SigningKey[] = [];
  #seen: string | undefined;
  #lookedAt = Number.NEGATIVE_INFINITY;

  /**
   * @param root the state folder, which has the key if `keyFile` is null
   * @param where the database, for messages
   */
  constructor(root: string, keyFile: string | null, where: string) {
    this.path = keyFile ?? join(root, "store-key");
    this.#root = root;
    this.#isOwn = keyFile === null;
    this.#where = where;
  }

  /** The id of the key that signs; null if there is no key. */
  get keyId(): string | null {
    return this.#read()[0]?.id ?? null;
  }

  /** Whether this process may make a key for a database that already has records, such as those of an old version. */
  mayMakeKey = false;

  /**
   * @throws FleetError `FLEET_STORE_KEY_UNUSABLE` when this host has no key and may not make one. It may make a key
   * only in the state folder, and only if the database is empty or `mayMakeKey` is set.
   */
  assertKey({ isEmpty }: { isEmpty: boolean }): void {
    if (this.#read().length === 0 && !((isEmpty || this.mayMakeKey) && this.#isOwn)) {
      throw this.missing();
    }
  }

  /**
   * Makes a key if this host has none.
   *
   * @throws FleetError `FLEET_STORE_KEY_UNUSABLE` if the key belongs in `keyFile`
   */
  ensureKey(): void {
    if (this.#read().length === 0) this.#make();
  }

  /**
   * The signature of a record.
   *
   * @param key the record's Redis key. It is signed, too, so that nobody can move the record.
   */
  sign(key: string, content: string): string {
    this.ensureKey();
    const [first] = this.#keys;
    if (first === undefined) throw this.missing();
    return `${first.id}.${macOf(first, key, content)}`;
  }

  verify(key: string, content: string, signature: string | undefined): Verdict {
    if (signature === undefined || signature === "") return "unsigned";
    const [id, mac = ""] = signature.split(".");
    const found = this.#read().findIndex((each) => each.id === id);
    const used = this.#keys[found];
    if (used === undefined) return "unknown-key";
    const [given, expected] = [Buffer.from(mac), Buffer.from(macOf(used, key, content))];
    if (given.length !== expected.length || !timingSafeEqual(given, expected)) return "wrong";
    return found === 0 ? "good" : "outdated";
  }

  /** Refuses a record without a valid signature. @throws FleetError `FLEET_STATE_UNSIGNED` */
  assert(key: string, content: string, signature: string | undefined): void {
    const verdict = this.verify(key, content, signature);
    if (verdict === "good" || verdict === "outdated") return;
    throw unsigned(key, verdict, signature);
  }

  #read(): readonly SigningKey[] {
    const now = performance.now();
    if (now - this.#lookedAt < LOOK_MS && this.#keys.length > 0) return this.#keys;
    this.#lookedAt = now;
    const state = stateOf(this.path);
    if (state === this.#seen) return this.#keys;
    try {
      this.#keys = state === undefined ? this.#keys : readKeys(this.path);
      this.#seen = state;
    } catch (error) {
      // If the file is being replaced, the keys that this process knows stay in force.
      if (this.#keys.length === 0 || !isFleetError(error)) throw error;
    }
    return this.#keys;
  }

  #make(): void {
    if (!this.#isOwn) throw this.missing();
    const temp = `${this.path}.${randomBytes(4).toString("hex")}.tmp`;
    try {
      ensureStateFolder(this.#root);
      writeFileSync(temp, `${randomBytes(32).toString("hex")}\n`, { mode: 0o600, flag: "wx" });
      linkSync(temp, this.path);
    } catch (error) {
      // If another process made the key first, use that key.
      if (systemCode(error) !== "EEXIST") throw mediumError("write", this.path, error);
    } finally {
      rmSync(temp, { force: true });
    }
    this.#seen = undefined;
    this.#lookedAt = Number.NEGATIVE_INFINITY;
    this.#read();
  }

  missing(): FleetError {
    const message = `The records in ${quote(this.#where)} are signed, and this host has no key for them in ${quote(this.path)}.`;
    return new FleetError("FLEET_STORE_KEY_UNUSABLE", message, {
      suggestions: [
        `Copy the file store-key from the state folder of another host to ${quote(this.path)}, with mode 0600.`,
        "copilotfleet store sign --all # only if no host has the key",
      ],
    });
  }
}

function macOf({ secret }: SigningKey, key: string, content: string): string {
  return createHmac("sha256", secret).update(`${key}\0${content}`).digest("base64url");
}

/** A text that changes whenever the file changes; undefined if there is no file. */
function stateOf(path: string): string | undefined {
  let stats: Stats | undefined;
  try {
    stats = statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw mediumError("read", path, error);
  }
  return stats && [stats.ino, stats.size, stats.mtimeMs, stats.ctimeMs].join(" ");
}

function readKeys(path: string): SigningKey[] {
  const lines = readValueFile(path, "storeOptions.keyFile")
    .split(/\r?\n/)
    .filter((line) => line !== "");
  const wrong = lines.findIndex((line) => !KEY.test(line));
  if (lines.length === 0 || wrong !== -1) {
    const what = lines.length === 0 ? "is empty" : `has something else than a key on line ${wrong + 1}`;
    const message = `The file ${quote(path)} ${what}. Allowed: keys of 64 hexadecimal digits, one on each line`;
    throw new FleetError("FLEET_STORE_KEY_UNUSABLE", message, { suggestions: [`ls -l ${shellQuote(path)}`] });
  }
  return lines.map((line) => ({
    id: createHash("sha256").update(line).digest("hex").slice(0, 8),
    secret: Buffer.from(line, "hex"),
  }));
}

function unsigned(key: string, verdict: Verdict, signature: string | undefined): FleetError {
  const reasons: Record<Verdict, string> = {
    good: "",
    outdated: "",
    unsigned: "it has no signature",
    "unknown-key": `it is signed with the key ${quote(signature?.split(".")[0])}, which this host does not have`,
    wrong: "its signature belongs to another content or another name",
  };
  const message = `The record ${quote(key)} in Redis does not come from this fleet: ${reasons[verdict]}. The fleet does not use it.`;
  return new FleetError("FLEET_STATE_UNSIGNED", message, {
    suggestions: [
      verdict === "unknown-key"
        ? "Give all hosts the same key: storeOptions.keyFile, or the file store-key in the state folder."
        : "copilotfleet store sign --all # only if the fleet wrote the record with a key that is lost",
      "copilotfleet doctor",
    ],
  });
}
