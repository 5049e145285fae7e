import { readFileSync, statSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { createRemoteJWKSet, JSONWebKeySet, JWKSCacheInput, JWTVerifyGetKey } from "jose";
import type { IssuerConfig } from "../../config/identity.js";
import { isSafeUrl } from "../../config/safe-url.js";
import { isObject, parseObject } from "../../config/values/json.js";
import { systemCode } from "../../errors.js";
import { fetchJson, NoAnswer } from "../fetch-json.js";

/** Keys that are older than this are fetched again in the background. In milliseconds. */
const FRESH_MS = 5 * 60_000;
/**
 * Keys that are older than this are fetched again before they are used. If that fails or takes too long, they are used
 * anyway. In milliseconds.
 */
const STALE_MS = 60 * 60_000;
/** How long to wait for newer keys before using the known ones, in milliseconds. */
const PATIENCE_MS = 1_000;
/** Keys that are older than this are not used, so the fleet works for a day without the issuer. In milliseconds. */
const LAST_MS = 24 * 60 * 60_000;
/**
 * The shortest time between two attempts to fetch keys, in milliseconds. It keeps tokens with made-up key ids from
 * causing a flood of requests.
 */
const COOLDOWN_MS = 30_000;
const LARGEST_FILE_BYTES = 512 * 1024;

/** The error if there are no usable keys of an issuer. The message is for the operator's log. */
export class NoKeys extends Error {}

/** The public keys of one issuer, from its address or from a file. */
export class IssuerKeys {
  readonly #issuer: IssuerConfig;
  #remote: ReturnType<typeof createRemoteJWKSet> | undefined;
  /** The last keys and the time at which they came. */
  readonly #last: JWKSCacheInput & { uat?: number; jwks?: JSONWebKeySet } = {};
  #triedMs = Number.NEGATIVE_INFINITY;
  #problem: string | undefined;
  #isReported = false;

  constructor(issuer: IssuerConfig) {
    this.#issuer = issuer;
  }

  /**
   * The key for a token. Asks the issuer for newer keys if the token names another key.
   *
   * @throws NoKeys when there are no keys that are younger than a day; an error of `jose` when none of them fits
   */
  readonly key: JWTVerifyGetKey = async (header, input) => {
    const { errors } = await import("jose");
    try {
      return await (await this.#set())(header, input);
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      // The issuer has no newer keys for us, so the known ones decide.
      if (this.#ageMs <= LAST_MS) throw new errors.JWKSNoMatchingKey();
      throw this.#noKeys();
    }
  };

  /** Gets the keys now. @returns their number, for `doctor`. @throws NoKeys */
  async count(): Promise<number> {
    try {
      await (await this.#set()).reload();
      return this.#last.jwks?.keys.length ?? 0;
    } catch (error) {
      throw error instanceof NoAnswer ? this.#noKeys() : error;
    }
  }

  #noKeys(): NoKeys {
    return new NoKeys(`no keys of ${this.#issuer.issuer}: ${this.#problem ?? "they are older than a day"}`);
  }

  /** An unreported problem with getting the keys; undefined if there is none. Known keys may still work. */
  takeWarning(): string | undefined {
    if (this.#problem === undefined || this.#isReported) return undefined;
    this.#isReported = true;
    const known = this.#last.jwks === undefined ? "" : "; the known keys work for a day";
    return `The keys of ${this.#issuer.issuer} cannot be read: ${this.#problem}${known}`;
  }

  get #ageMs(): number {
    return Date.now() - (this.#last.uat ?? Number.NEGATIVE_INFINITY);
  }

  /** The keys. Fetches them again in the background before they are too old; reads a file again each time. */
  async #set(): Promise<ReturnType<typeof createRemoteJWKSet>> {
    const { createRemoteJWKSet, customFetch, jwksCache } = await import("jose");
    this.#remote ??= createRemoteJWKSet(new URL(this.#issuer.issuer), {
      cacheMaxAge: LAST_MS,
      cooldownDuration: COOLDOWN_MS,
      [customFetch]: async () => await this.#fetch(),
      [jwksCache]: this.#last,
    });
    if (this.#last.jwks !== undefined && this.#ageMs <= LAST_MS && (this.#file !== null || this.#ageMs > FRESH_MS)) {
      const refreshed = this.#remote.reload().catch(() => "the known keys stay");
      if (this.#file !== null || this.#ageMs > STALE_MS)
        await Promise.race([refreshed, delay(PATIENCE_MS, undefined, { ref: false })]);
    }
    return this.#remote;
  }

  get #file(): string | null {
    const { jwks } = this.#issuer;
    return jwks?.startsWith("/") === true ? jwks : null;
  }

  /** Gets the keys. Asks the issuer only if the last attempt was not a moment ago. */
  async #fetch(): Promise<Response> {
    if (this.#file === null && Math.abs(Date.now() - this.#triedMs) < COOLDOWN_MS)
      throw new NoAnswer("the last attempt was a moment ago");
    this.#triedMs = Date.now();
    try {
      const { issuer, jwks } = this.#issuer;
      const content = this.#file === null ? await getObject(jwks ?? (await discover(issuer))) : read(this.#file);
      return Response.json(this.#checked(content));
    } catch (error) {
      throw this.#failed(error);
    }
  }

  #checked({ keys }: Record<string, unknown>): JSONWebKeySet {
    if (!Array.isArray(keys) || keys.length === 0) throw new NoAnswer("the answer has no keys");
    if (!keys.every(isObject)) throw new NoAnswer("the answer is not a JSON Web Key Set");
    this.#problem = undefined;
    this.#isReported = false;
    return { keys };
  }

  #failed(error: unknown): unknown {
    if (!(error instanceof NoAnswer)) return error;
    if (error.message !== this.#problem) this.#isReported = false;
    this.#problem = error.message;
    return error;
  }
}

function read(path: string): Record<string, unknown> {
  try {
    const { size } = statSync(path);
    if (size > LARGEST_FILE_BYTES) throw new NoAnswer(`${path} has ${size} bytes`);
    const content = parseObject(readFileSync(path, "utf8"));
    if (content === undefined) throw new NoAnswer(`${path} is not a JSON object`);
    return content;
  } catch (error) {
    throw systemCode(error) === undefined ? error : new NoAnswer(`${path}: ${systemCode(error)}`);
  }
}

/**
 * The address of an issuer's keys, from the issuer's description of itself (OpenID Connect Discovery 1.0, section 4).
 */
async function discover(issuer: string): Promise<string> {
  const description = await getObject(`${issuer.replace(/\/$/, "")}/.well-known/openid-configuration`);
  if (description.issuer !== issuer) throw new NoAnswer("its description names another issuer");
  const { jwks_uri: address } = description;
  // A remote issuer must not make the fleet send requests to this machine, so only an issuer on this machine may name
  // an http:// address.
  const isPlain = !issuer.startsWith("https:");
  if (typeof address === "string" && isSafeUrl(address) && (isPlain || address.startsWith("https:"))) return address;
  throw new NoAnswer("its description names no https:// address of keys");
}

async function getObject(url: string): Promise<Record<string, unknown>> {
  const { status, body } = await fetchJson(url);
  if (status >= 300 && status < 400) throw new NoAnswer("it redirects to another address");
  if (status !== 200) throw new NoAnswer(`${url} answers with status ${status}`);
  if (body === null) throw new NoAnswer(`${url} does not answer with a JSON object`);
  return body;
}
