import { sha256 } from "../../../config/values/text.js";
import type { FleetError } from "../../../errors.js";
import { SCHEMA } from "../../../model/registry.js";
import type { TokenRecord } from "../../../model/token.js";
import { FIRST_REGISTRY } from "../link/connection.js";
import { type Documents, parse, parseObject, type Stored } from "../records/documents.js";
import { contentOf } from "../records/hosts.js";
import { LOOK_AT_HOSTS, SIGN_HOST } from "../scripts/host-scripts.js";
import type { Verdict } from "./signer.js";

const AT_ONCE = 200;

type SignedKind =
  | "servers"
  | "sessions"
  | "tokens"
  | "placements"
  | "keyed-turns"
  | "limits"
  | "purges"
  | "pseudonym-key"
  | "hosts";

/** A record whose signature is missing, wrong or outdated. */
export interface SignatureFinding {
  kind: SignedKind;
  /**
   * The id of the session or token, the user of the placement or the limits, the digests of the user and the
   * idempotency key, the digest of the purge's user, or the host. Empty for the registry of a fleet without named
   * hosts, and for the pseudonym key.
   */
  name: string;
  verdict: Exclude<Verdict, "good">;
}

/** Finds records that need a signature, and signs them. */
export class Signatures {
  readonly #documents: Documents;
  /** A digest of each finding's record, so that {@link sign} does not sign a record that was changed since then. */
  readonly #found = new WeakMap<SignatureFinding, string>();

  constructor(documents: Documents) {
    this.#documents = documents;
  }

  /** The id of the key with which this host signs; null if it has no key. */
  get keyId(): string | null {
    return this.#documents.signer.keyId;
  }

  /** Lets {@link sign} make a key even though the database has records. */
  allowNewKey(): void {
    this.#documents.signer.mayMakeKey = true;
  }

  missingKey(): FleetError {
    return this.#documents.signer.missing();
  }

  async find(): Promise<SignatureFinding[]> {
    const found: SignatureFinding[] = [];
    for await (const { kind, name, verdict, record } of this.#all()) {
      if (verdict === "good") continue;
      const finding = { kind, name, verdict };
      this.#found.set(finding, digestOf(record));
      found.push(finding);
    }
    return found;
  }

  /**
   * Signs records that {@link find} has found. Leaves out records that somebody has changed since then. Resolves with
   * the findings whose records were signed.
   */
  async sign(findings: readonly SignatureFinding[]): Promise<SignatureFinding[]> {
    this.#documents.signer.ensureKey();
    const signed: SignatureFinding[] = [];
    for (const finding of findings) if (await this.#sign(finding)) signed.push(finding);
    return signed;
  }

  async *#all(): AsyncGenerator<{ kind: SignedKind; name: string; verdict: Verdict; record: SignedRecord }> {
    const { connection, keys } = this.#documents;
    const hosts = new Set<string>();
    for await (const names of connection.membersOf(keys.hosts, AT_ONCE)) for (const name of names) hosts.add(name);
    const lists: [SignedKind, AsyncIterable<string[]> | string[][]][] = [
      ["servers", [["", ...hosts]]],
      ["hosts", [[...hosts]]],
      ["tokens", connection.membersOf(keys.tokens, AT_ONCE)],
      ["sessions", connection.membersOf(keys.sessions, AT_ONCE)],
      ["placements", connection.membersOf(keys.placements, AT_ONCE)],
      ["keyed-turns", connection.membersOf(keys.keyedTurns, AT_ONCE)],
      ["limits", connection.membersOf(keys.limits, AT_ONCE)],
      ["purges", connection.membersOf(keys.purges, AT_ONCE)],
      ["pseudonym-key", [[""]]],
    ];
    for (const [kind, list] of lists)
      for await (const names of list)
        for (const name of names) {
          const record = await this.#read(kind, name);
          if (record === null) continue;
          const verdict = this.#documents.signer.verify(record.key, record.content, record.signature);
          yield { kind, name, verdict, record };
        }
  }

  /** Reads a record with its signature. Null if there is no such record, or if it needs no signature. */
  async #read(kind: SignedKind, name: string): Promise<SignedRecord | null> {
    const { connection, keys } = this.#documents;
    if (kind === "hosts") {
      const key = keys.host(name);
      const [, , instance, , entry, , signature] = await connection.run(LOOK_AT_HOSTS, [key], []);
      if (typeof entry !== "string") return null;
      return {
        key,
        content: contentOf(String(instance), entry),
        signature: String(signature ?? ""),
        stored: null,
        isNewer: false,
      };
    }
    const key = {
      servers: () => keys.registryOf(name === "" ? null : name),
      sessions: () => keys.session(name),
      tokens: () => keys.token(name),
      placements: () => keys.placement(name),
      "keyed-turns": () => keys.keyedTurn(name),
      limits: () => keys.limitsOf(name),
      purges: () => keys.purge(name),
      "pseudonym-key": () => keys.pseudonymKey,
    }[kind]();
    const [text = null] = await connection.read([key]);
    if (text === null || (key === keys.founding && text === FIRST_REGISTRY)) return null;
    const { schema, content, signature, ...stored } = parse(key, text);
    const isNewer = schema > SCHEMA;
    // Leave out the tokens of hosts. They are valid for only a minute.
    if (kind === "tokens" && !isNewer && parseObject<TokenRecord>(key, stored.data).role === "host") return null;
    return { key, content, signature, stored, isNewer };
  }

  /** Signs a record. @returns false if it is gone, has a newer schema, or was changed after {@link find} found it */
  async #sign(finding: SignatureFinding): Promise<boolean> {
    const record = await this.#read(finding.kind, finding.name);
    if (record === null || record.isNewer || digestOf(record) !== this.#found.get(finding)) return false;
    const { connection, signer } = this.#documents;
    const { key, content, stored } = record;
    if (stored !== null) return await this.#documents.commit(key, stored, stored.data, {});
    const end = content.indexOf("\n");
    const args = [content.slice(0, end), content.slice(end + 1), signer.sign(key, content)];
    const [word] = await connection.run(SIGN_HOST, [key], args);
    return word === "ok";
  }
}

interface SignedRecord {
  key: string;
  content: string;
  signature: string | undefined;
  /** Null for the entry of a host, which is not a document. */
  stored: Stored | null;
  /** Whether its schema is newer than this version's, so that this version cannot write it. */
  isNewer: boolean;
}

function digestOf({ content, signature = "" }: SignedRecord): string {
  return sha256(`${signature}\n${content}`);
}
