import type { FleetError } from "../../../errors.js";
import type { TokenRecord } from "../../../model/token.js";
import { FIRST_REGISTRY } from "../link/connection.js";
import { type Documents, parse, parseObject, type Stored } from "../records/documents.js";
import { contentOf } from "../records/hosts.js";
import { LOOK_AT_HOSTS, SIGN_HOST } from "../scripts/host-scripts.js";
import type { Verdict } from "./signer.js";

const AT_ONCE = 200;

type SignedKind = "servers" | "sessions" | "tokens" | "placements" | "hosts";

/** A record whose signature is missing, wrong or outdated. */
export interface SignatureFinding {
  kind: SignedKind;
  /** The id of the session or token, the user of the placement, or the host. Empty: the fleet without named hosts. */
  name: string;
  verdict: Exclude<Verdict, "good">;
}

/** Finds records that need a signature, and signs them. */
export class Signatures {
  readonly #documents: Documents;

  constructor(documents: Documents) {
    this.#documents = documents;
  }

  /** The id of the key with which this host signs; null if it has none. */
  get keyId(): string | null {
    return this.#documents.signer.keyId;
  }

  /** Lets {@link sign} make a key although the database has records. */
  allowNewKey(): void {
    this.#documents.signer.mayMakeKey = true;
  }

  missingKey(): FleetError {
    return this.#documents.signer.missing();
  }

  async find(): Promise<SignatureFinding[]> {
    const found: SignatureFinding[] = [];
    for await (const { kind, name, verdict } of this.#all())
      if (verdict !== "good") found.push({ kind, name, verdict });
    return found;
  }

  /** Signs these records. Leaves out records that somebody changes at the same time. Resolves with those that were signed. */
  async sign(findings: readonly SignatureFinding[]): Promise<SignatureFinding[]> {
    this.#documents.signer.ensureKey();
    const signed: SignatureFinding[] = [];
    for (const finding of findings) if (await this.#sign(finding)) signed.push(finding);
    return signed;
  }

  async *#all(): AsyncGenerator<{ kind: SignedKind; name: string; verdict: Verdict }> {
    const { connection, keys } = this.#documents;
    const hosts = new Set<string>();
    for await (const names of connection.membersOf(keys.hosts, AT_ONCE)) for (const name of names) hosts.add(name);
    const lists: [SignedKind, AsyncIterable<string[]> | string[][]][] = [
      ["servers", [["", ...hosts]]],
      ["hosts", [[...hosts]]],
      ["tokens", connection.membersOf(keys.tokens, AT_ONCE)],
      ["sessions", connection.membersOf(keys.sessions, AT_ONCE)],
      ["placements", connection.membersOf(keys.placements, AT_ONCE)],
    ];
    for (const [kind, list] of lists)
      for await (const names of list)
        for (const name of names) {
          const verdict = await this.#verdictOf(kind, name);
          if (verdict !== null) yield { kind, name, verdict };
        }
  }

  /** Null if there is no such record. */
  async #verdictOf(kind: SignedKind, name: string): Promise<Verdict | null> {
    const record = await this.#read(kind, name);
    return record && this.#documents.signer.verify(record.key, record.content, record.signature);
  }

  async #read(kind: SignedKind, name: string): Promise<SignedRecord | null> {
    const { connection, keys } = this.#documents;
    if (kind === "hosts") {
      const key = keys.host(name);
      const [, instance, , entry, , signature] = await connection.run(LOOK_AT_HOSTS, [key], []);
      if (typeof entry !== "string") return null;
      return { key, content: contentOf(String(instance), entry), signature: String(signature ?? ""), stored: null };
    }
    const key = {
      servers: () => keys.registryOf(name === "" ? null : name),
      sessions: () => keys.session(name),
      tokens: () => keys.token(name),
      placements: () => keys.placement(name),
    }[kind]();
    const [text = null] = await connection.read([key]);
    if (text === null || text === FIRST_REGISTRY) return null;
    const { content, signature, ...stored } = parse(key, text);
    // The token of another host is valid for a minute, so no earlier version can have left a good one.
    if (kind === "tokens" && parseObject<TokenRecord>(key, stored.data).role === "host") return null;
    return { key, content, signature, stored };
  }

  /** @returns false if somebody else changed the record in between */
  async #sign({ kind, name }: SignatureFinding): Promise<boolean> {
    const record = await this.#read(kind, name);
    if (record === null) return false;
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
  /** Null for a host. */
  stored: Stored | null;
}
