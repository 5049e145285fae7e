import { createPrivateKey, createPublicKey, type KeyObject, randomBytes, sign, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Config } from "../../config/schema.js";
import { isObject } from "../../config/values/json.js";
import { sha256 } from "../../config/values/text.js";
import { FleetError, quote } from "../../errors.js";
import type { HostProof } from "../../model/host.js";
import { readIfThere } from "../../store/file/failures.js";
import { ensureHostKey } from "./key-file.js";

/** How far the time in a signed call may differ from this host's time, in milliseconds. */
const WINDOW_MS = 30_000;
/** How many accepted calls to remember, so that each is accepted only once. Hosts make far fewer within the window. */
const MOST_NONCES = 100_000;

/** The parts of a call to another host that the call's signature covers. */
export interface SignedCall {
  /**
   * The random text that the receiver chose for this connection, so that the signature is not valid on any other
   * connection.
   */
  challenge: string;
  from: string;
  to: string;
  method: string;
  params: object;
}

export interface CallProof extends HostProof {
  at: number;
  nonce: string;
}

/**
 * The keys of the hosts (Ed25519). A host signs its address and its calls with its own key. Other hosts know this key
 * from the configuration (`host.peers`), or accept it because the fleet's key signed it (`host.ca`).
 */
export class HostKeys {
  readonly #stateRoot: string;
  readonly #peers: ReadonlyMap<string, string>;
  readonly #ca: KeyObject | null;
  readonly #nonces = new Map<string, number>();
  #own: { key: KeyObject; x: string } | undefined;

  private constructor(stateRoot: string, peers: ReadonlyMap<string, string>, ca: KeyObject | null) {
    this.#stateRoot = stateRoot;
    this.#peers = peers;
    this.#ca = ca;
  }

  /** Null if the configuration names neither the keys of the hosts nor the fleet's key. */
  static from({ host }: Pick<Config, "host">, stateRoot: string): HostKeys | null {
    if (host.ca === null && host.peers.length === 0) return null;
    const peers = host.peers.map((text) => text.split("=", 2) as [string, string]);
    return new HostKeys(stateRoot, new Map(peers), host.ca === null ? null : readCa(host.ca));
  }

  /** Signs a text as this host. */
  sign(text: string): HostProof {
    this.#own ??= ensureHostKey(this.#stateRoot);
    const { key, x } = this.#own;
    const path = certificatePath(this.#stateRoot);
    const certificate = readIfThere(path, () => readFileSync(path, "utf8"))?.trim();
    const signature = sign(null, Buffer.from(text), key).toString("base64url");
    return { key: x, signature, ...(certificate === undefined ? {} : { certificate }) };
  }

  /** Whether the host with this name signed the text. */
  isSignedBy(name: string, text: string, proof: unknown): boolean {
    if (!isObject(proof)) return false;
    const { key, signature, certificate } = proof;
    if (typeof key !== "string" || typeof signature !== "string") return false;
    return this.#trusts(name, key, certificate) && isSigned(publicKey(key), text, signature);
  }

  signCall(call: SignedCall): CallProof {
    const [at, nonce] = [Date.now(), randomBytes(16).toString("base64url")];
    return { ...this.sign(callText(call, at, nonce)), at, nonce };
  }

  /**
   * Verifies a call, and accepts it only once. @throws FleetError `FLEET_TOKEN_REFUSED` when the call is not signed,
   * too old, or a repetition
   */
  acceptCall(call: SignedCall, proof: unknown): void {
    const { at, nonce } = (isObject(proof) ? proof : {}) as { at?: unknown; nonce?: unknown };
    if (typeof at !== "number" || typeof nonce !== "string" || nonce.length > 64) throw refused(call, "is not signed");
    if (!this.isSignedBy(call.from, callText(call, at, nonce), proof)) throw refused(call, "has no good signature");
    const now = Date.now();
    if (Math.abs(now - at) > WINDOW_MS) throw refused(call, "is too old, or the clocks of the hosts differ");
    for (const [known, until] of this.#nonces) {
      if (until > now) break;
      this.#nonces.delete(known);
    }
    if (this.#nonces.has(nonce)) throw refused(call, "was accepted before");
    if (this.#nonces.size >= MOST_NONCES) throw refused(call, "comes with too many others");
    this.#nonces.set(nonce, now + 2 * WINDOW_MS);
  }

  #trusts(name: string, key: string, certificate: unknown): boolean {
    const known = this.#peers.get(name);
    if (known !== undefined) return known === key;
    if (this.#ca === null || typeof certificate !== "string") return false;
    return isSigned(this.#ca, certificateText(name, key), certificate);
  }
}

export function certificatePath(stateRoot: string): string {
  return join(stateRoot, "host-certificate");
}

/** The text that the fleet's key signs to confirm that a key belongs to the host with this name. */
export function certificateText(name: string, key: string): string {
  return JSON.stringify(["copilotfleet host", name, key]);
}

/** The text that a host signs to confirm the address of its front door until a certain time: see `HostEntry.until`. */
export function doorText(name: string, instance: string, door: string | null, until: number | undefined): string {
  return JSON.stringify(["copilotfleet door", name, instance, door, until ?? null]);
}

function callText({ challenge, from, to, method, params }: SignedCall, at: number, nonce: string): string {
  return JSON.stringify(["copilotfleet call", challenge, from, to, method, sha256(JSON.stringify(params)), at, nonce]);
}

function publicKey(x: string): KeyObject | null {
  try {
    return createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
  } catch {
    return null;
  }
}

function isSigned(key: KeyObject | null, text: string, signature: string): boolean {
  return key !== null && verify(null, Buffer.from(text), key, Buffer.from(signature, "base64url"));
}

function readCa(path: string): KeyObject {
  try {
    const key = createPublicKey(readFileSync(path, "utf8"));
    if (key.asymmetricKeyType === "ed25519") return key;
  } catch (error) {
    throw badKey("host.ca", path, error);
  }
  throw badKey("host.ca", path, undefined);
}

/** Signs a host's name and key with the fleet's private key. @param path a PEM file with an Ed25519 key */
export function certify(path: string, name: string, key: string): string {
  let ca: KeyObject;
  try {
    ca = createPrivateKey(readFileSync(path, "utf8"));
  } catch (error) {
    throw badKey("--ca-key", path, error);
  }
  if (ca.asymmetricKeyType !== "ed25519") throw badKey("--ca-key", path, undefined);
  return sign(null, Buffer.from(certificateText(name, key)), ca).toString("base64url");
}

function badKey(setting: string, path: string, cause: unknown): FleetError {
  const message = `${setting} is ${quote(path)}, which is not a readable Ed25519 key. Allowed: a PEM file with such a key`;
  return new FleetError("FLEET_CONFIG_INVALID", message, {
    suggestions: ["Make the fleet's key with openssl genpkey -algorithm ed25519, as docs/hosts.md describes."],
    cause,
  });
}

function refused({ from, method }: SignedCall, why: string): FleetError {
  return new FleetError("FLEET_TOKEN_REFUSED", `The call ${quote(method)} of host ${quote(from)} ${why}.`, {
    suggestions: ["copilotfleet host key # on both hosts: the configuration must name the key of the host that calls"],
  });
}
