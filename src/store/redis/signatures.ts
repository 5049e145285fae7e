import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { linkSync, rmSync, type Stats, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FleetError, isFleetError, quote, systemCode } from "../../base/errors.js";
import { type NamedSource, SCHEMA } from "../../base/server.js";
import type { Environment } from "../../config/load/paths.js";
import { nameOfSource, readSecret, readValueFile, type SecretKind } from "../../config/secret.js";
import { mediumError } from "../file/failures.js";
import { ensureStateFolder } from "../file/state-folder.js";
import type { AnyKind } from "../rows.js";
import type { RecordSignatures, SignatureFinding, SignedKind } from "../store.js";
import { parseRecord, type RawRow, type RedisRows } from "./rows.js";

/** The names of kinds for people and scripts. */
const SHOWN: Record<string, SignedKind> = {
  registry: "servers",
  host: "hosts",
  session: "sessions",
  lease: "leases",
  token: "tokens",
  "token-use": "token-uses",
  placement: "placements",
  "keyed-turn": "keyed-turns",
  limits: "limits",
  slots: "slots",
  purge: "purges",
  "pseudonym-key": "pseudonym-key",
};

export class Signatures implements RecordSignatures {
  readonly #rows: RedisRows;
  readonly #signer: Signer;
  readonly #kinds: readonly AnyKind[];
  /** The row of each finding, so that {@link sign} does not sign a row that was changed since then. */
  readonly #found = new WeakMap<SignatureFinding, { kind: AnyKind; raw: RawRow }>();

  constructor(rows: RedisRows, signer: Signer, kinds: readonly AnyKind[]) {
    this.#rows = rows;
    this.#signer = signer;
    this.#kinds = kinds;
  }

  get keyId(): string | null {
    return this.#signer.keyId;
  }

  allowNewKey(): void {
    this.#signer.mayMakeKey = true;
  }

  missingKey(): FleetError {
    return this.#signer.missing();
  }

  async find(): Promise<SignatureFinding[]> {
    const found: SignatureFinding[] = [];
    for (const kind of this.#kinds) {
      const ids = await this.#rows.ids(kind);
      for (const [index, raw] of (await this.#rows.readRaw(kind, ids)).entries()) {
        if (raw === null) continue;
        const verdict = this.#signer.verify(raw.key, raw.content, raw.signature);
        if (verdict === "good" || (raw.schema === SCHEMA && isOfHost(raw))) continue;
        const finding: SignatureFinding = { kind: SHOWN[kind.name] as SignedKind, name: ids[index] ?? "", verdict };
        this.#found.set(finding, { kind, raw });
        found.push(finding);
      }
    }
    return found;
  }

  async sign(findings: readonly SignatureFinding[]): Promise<SignatureFinding[]> {
    this.#signer.ensureKey();
    const signed: SignatureFinding[] = [];
    for (const finding of findings) {
      const { kind, raw } = this.#found.get(finding) ?? {};
      if (kind === undefined || raw === undefined || raw.schema > SCHEMA) continue;
      const record = parseRecord<object>(raw.key, raw.data);
      const change = { kind, id: finding.name, from: { id: finding.name, version: raw.head, record }, to: record };
      if (await this.#rows.commit([change])) signed.push(finding);
    }
    return signed;
  }
}

/** Whether the record is the token of a host, which is valid for only a minute. */
function isOfHost({ key, data }: RawRow): boolean {
  return parseRecord<{ role?: unknown }>(key, data).role === "host";
}

const KEY = /^[0-9a-f]{64}$/;
const STORE_KEY: SecretKind = { word: "store key", code: "FLEET_STORE_UNUSABLE", isText: true };
/** How often the signer checks whether the key file has changed, in milliseconds. */
const LOOK_MS = 1_000;

interface SigningKey {
  /** The beginning of the key's hash. It names the key in signatures and messages. */
  id: string;
  secret: Buffer;
}

type Verdict = "good" | SignatureFinding["verdict"];

/**
 * Signs the records in Redis, and verifies their signatures (HMAC-SHA256). Everybody with write access to Redis can
 * write records, but only the fleet's hosts can sign them. The key file has one key of 64 hexadecimal digits on each
 * line. The first key signs, and all keys verify, so that the key can be replaced while the fleet is running.
 */
export class Signer {
  /** The file with the key; null if a variable or a command provides the key. */
  readonly #path: string | null;
  /** Names the place of the key in messages. */
  readonly #place: string;
  readonly #root: string;
  readonly #source: NamedSource | null;
  readonly #where: string;
  #keys: readonly SigningKey[] = [];
  #seen: string | undefined;
  #lookedAt = Number.NEGATIVE_INFINITY;

  /**
   * @param root the state folder, which has the key if `source` is null
   * @param where the database, for messages
   */
  constructor(root: string, source: NamedSource | null, where: string) {
    this.#path = source === null ? join(root, "store-key") : source.from === "file" ? source.path : null;
    this.#root = root;
    this.#source = source;
    this.#place = this.#path === null ? nameOfSource(source as NamedSource) : quote(this.#path);
    this.#where = where;
  }

  /** Reads the key from a variable or a command. A key in a file is read again whenever the file changes. */
  async load(env: Environment): Promise<void> {
    if (this.#path !== null || this.#source === null) return;
    this.#keys = parseKeys(await readSecret(this.#source, STORE_KEY, { env }), this.#place);
  }

  /** The id of the key that signs; null if there is no key. */
  get keyId(): string | null {
    return this.#read()[0]?.id ?? null;
  }

  /** Whether this process may make a key for a database that already has records, such as those of an old version. */
  mayMakeKey = false;

  /**
   * @throws FleetError `FLEET_STORE_UNUSABLE` when this host has no key and may not make one. It may make a key
   * only in the state folder, and only if the database is empty or `mayMakeKey` is set.
   */
  assertKey({ isEmpty }: { isEmpty: boolean }): void {
    if (this.#read().length === 0 && !((isEmpty || this.mayMakeKey) && this.#source === null)) {
      throw this.missing();
    }
  }

  /**
   * Makes a key if this host has none.
   *
   * @throws FleetError `FLEET_STORE_UNUSABLE` if `storeOptions.key` names the key
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
    if (this.#path === null) return this.#keys;
    const now = performance.now();
    if (now - this.#lookedAt < LOOK_MS && this.#keys.length > 0) return this.#keys;
    this.#lookedAt = now;
    const state = stateOf(this.#path);
    if (state === this.#seen) return this.#keys;
    try {
      this.#keys = state === undefined ? this.#keys : readKeys(this.#path);
      this.#seen = state;
    } catch (error) {
      // If the file is being replaced, the keys that this process knows stay in force.
      if (this.#keys.length === 0 || !isFleetError(error)) throw error;
    }
    return this.#keys;
  }

  #make(): void {
    const path = this.#path;
    if (this.#source !== null || path === null) throw this.missing();
    const temp = `${path}.${randomBytes(4).toString("hex")}.tmp`;
    try {
      ensureStateFolder(this.#root);
      writeFileSync(temp, `${randomBytes(32).toString("hex")}\n`, { mode: 0o600, flag: "wx" });
      linkSync(temp, path);
    } catch (error) {
      // If another process made the key first, use that key.
      if (systemCode(error) !== "EEXIST") throw mediumError("write", path, error);
    } finally {
      rmSync(temp, { force: true });
    }
    this.#seen = undefined;
    this.#lookedAt = Number.NEGATIVE_INFINITY;
    this.#read();
  }

  missing(): FleetError {
    const message = `The records in ${quote(this.#where)} are signed, and this host has no key for them in ${this.#place}.`;
    return new FleetError("FLEET_STORE_UNUSABLE", message, {
      suggestions: [
        `Copy the file store-key from the state folder of another host to ${this.#place}, with mode 0600.`,
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
  return parseKeys(readValueFile(path, "storeOptions.key"), `The file ${quote(path)}`);
}

function parseKeys(text: string, place: string): SigningKey[] {
  const lines = text.split(/\r?\n/).filter((line) => line !== "");
  const wrong = lines.findIndex((line) => !KEY.test(line));
  if (lines.length === 0 || wrong !== -1) {
    const what = lines.length === 0 ? "is empty" : `has something else than a key on line ${wrong + 1}`;
    const message = `${place} ${what}. Allowed: keys of 64 hexadecimal digits, one on each line`;
    throw new FleetError("FLEET_STORE_UNUSABLE", message, {
      suggestions: ["copilotfleet config get storeOptions.key"],
    });
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
        ? "Give all hosts the same key: storeOptions.key, or the file store-key in the state folder."
        : "copilotfleet store sign --all # only if the fleet wrote the record with a key that is lost",
      "copilotfleet doctor",
    ],
  });
}
