import { isUtf8 } from "node:buffer";
import { readFileSync, statSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { createRemoteJWKSet, errors, JSONWebKeySet, JWKSCacheInput, JWTVerifyGetKey } from "jose";
import { quote, systemCode } from "../base/errors.js";
import { isSafeUrl } from "../base/values/network.js";
import { isObject, parseObject } from "../base/values/text.js";
import type { IssuerConfig } from "../config/schema.js";
import { scanObject } from "../runtime/wire/scan.js";
import type { Store } from "../store/store.js";
import { type Claims, identityOf, Refused } from "./claims.js";
import { fetchJson, NoAnswer } from "./fetch-json.js";
import type { Identity } from "./identity.js";
import type { Refusal, SignOnContext } from "./sign-on.js";
import { isRevoked } from "./tokens.js";

interface Issuer {
  config: IssuerConfig;
  keys: IssuerKeys;
}

const MOST_KEY_ID_CHARACTERS = 512;
/**
 * The accepted values of the header `typ`: `JWT`, or `at+jwt` for an access token
 * (https://www.rfc-editor.org/rfc/rfc9068#section-2.1).
 */
const TYPES = /^(?:application\/)?(?:at\+)?jwt$/i;
/** Headers with which a token could bring its own key. Such a token is refused. */
const BRINGS_KEY = ["jku", "x5u", "jwk"];

/** The module, once it is loaded. A repeated `import()` would make each check a tenth slower. */
let jose: typeof import("jose") | undefined;

/** Finds out who presents a JSON Web Token of a configured issuer. */
export class JwtSignOn {
  readonly #store: Store;
  readonly #issuers: ReadonlyMap<string, Issuer>;

  constructor({ store, config }: Pick<SignOnContext, "store" | "config">) {
    this.#store = store;
    this.#issuers = new Map(
      config.identity.jwt.map((each) => [each.issuer, { config: each, keys: new IssuerKeys(each) }]),
    );
  }

  async identify(token: string): Promise<Identity | Refusal> {
    try {
      const identity = await this.verify(token);
      const { tokenId, user } = identity;
      if (await isRevoked(this.#store, tokenId)) return { refused: `The token ${tokenId} of ${user} was revoked.` };
      return identity;
    } catch (error) {
      if (error instanceof Refused) return { refused: `The JSON Web Token is refused: ${error.message}.` };
      if (error instanceof NoKeys) {
        return { refused: `The JSON Web Token cannot be checked now: ${error.message}.`, isUnchecked: true };
      }
      throw error;
    }
  }

  /**
   * The user whom a token names, without asking whether the token was revoked.
   *
   * @throws Refused when the token is not valid; NoKeys when it cannot be checked, because there are no usable keys of
   * the issuer. The messages are for the operator's log.
   */
  async verify(token: string): Promise<Identity> {
    const parts = readParts(token);
    const issuer = this.#issuerOf(parts);
    checkHeader(parts, issuer.config);
    return identityOf(await verified(token, issuer), issuer.config, parts.signed, Date.now());
  }

  async isStillGood({ tokenId, expiresAt }: Identity): Promise<boolean> {
    return Date.now() < Date.parse(expiresAt ?? "") && !(await isRevoked(this.#store, tokenId));
  }

  /** The unreported problems with getting the keys of issuers. */
  takeWarnings(): string[] {
    return [...this.#issuers.values()].flatMap(({ keys }) => keys.takeWarning() ?? []);
  }

  #issuerOf({ claims: { iss } }: TokenParts): Issuer {
    const issuer = typeof iss === "string" ? this.#issuers.get(iss) : undefined;
    if (issuer !== undefined) return issuer;
    throw new Refused(`its issuer ${typeof iss === "string" ? quote(iss) : "is missing and"} is not in identity.jwt`);
  }
}

function checkHeader({ header }: TokenParts, { algorithms }: IssuerConfig): void {
  const { alg, typ, kid } = header;
  if (!algorithms.some((allowed) => allowed === alg)) {
    throw new Refused(`its algorithm is ${quote(alg)}, and not ${algorithms.join(" or ")}`);
  }
  if (typ !== undefined && !(typeof typ === "string" && TYPES.test(typ))) {
    throw new Refused(`its type is ${quote(typ)}, and not JWT`);
  }
  if (kid !== undefined && !(typeof kid === "string" && kid.length <= MOST_KEY_ID_CHARACTERS)) {
    throw new Refused("the id of its key is not a short text");
  }
  const own = BRINGS_KEY.find((name) => Object.hasOwn(header, name));
  if (own !== undefined) throw new Refused(`it brings a key of its own (${own})`);
  if (Object.hasOwn(header, "crit")) throw new Refused("it requires an extension (crit)");
}

async function verified(token: string, { config, keys }: Issuer): Promise<Claims> {
  jose ??= await import("jose");
  const { jwtVerify, errors: known } = jose;
  const { issuer, audience, algorithms, clockSkewMs } = config;
  try {
    const options = { issuer, audience, algorithms: [...algorithms], clockTolerance: clockSkewMs / 1000 };
    const { payload } = await jwtVerify(token, keys.key, { ...options, requiredClaims: ["exp"] });
    return payload;
  } catch (error) {
    if (error instanceof NoKeys) throw error;
    if (error instanceof known.JOSEError) throw new Refused(reasonOf(error, config));
    // Node.js rejects the key, for example because it is damaged, or because an RSA key is too short.
    const { message } = error instanceof Error ? error : new Error(String(error));
    throw new Refused(`${issuer} has published a key that cannot be used: ${message}`);
  }
}

function reasonOf(error: errors.JOSEError, { issuer, audience }: IssuerConfig): string {
  switch (error.code) {
    case "ERR_JWKS_NO_MATCHING_KEY":
      return `${issuer} has no key with the token's key id and algorithm`;
    case "ERR_JWKS_MULTIPLE_MATCHING_KEYS":
      return `it names no key, and ${issuer} has several`;
    case "ERR_JWS_SIGNATURE_VERIFICATION_FAILED":
      return `its signature was not made by ${issuer}`;
    case "ERR_JWT_EXPIRED":
      return "it has expired";
    case "ERR_JWT_CLAIM_VALIDATION_FAILED": {
      const { claim } = error as errors.JWTClaimValidationFailed;
      if (claim === "aud") return `it is not for the audience ${quote(audience)}`;
      return claim === "nbf" ? "it is not valid yet" : `its claim ${quote(claim)} is missing or wrong`;
    }
    default:
      return `it cannot be verified (${error.code})`;
  }
}

/** The longest token, in bytes. */
const LONGEST_BYTES = 16 * 1024;
const FORM = /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*$/;

/** The parts of a token that has not been verified. */
export interface TokenParts {
  header: Readonly<Record<string, unknown>>;
  claims: Readonly<Record<string, unknown>>;
  /** The part of the token that the signature covers. */
  signed: string;
}

/** Reads a token without verifying it. @throws Refused */
export function readParts(token: string): TokenParts {
  if (token.length > LONGEST_BYTES)
    throw new Refused(`it has ${token.length} bytes, which is more than ${LONGEST_BYTES}`);
  const [, header = "", claims = ""] = FORM.exec(token) ?? [];
  if (header === "") throw new Refused("it does not have three parts in base64url");
  return {
    header: decode(header, "header"),
    claims: decode(claims, "content"),
    signed: token.slice(0, token.lastIndexOf(".")),
  };
}

function decode(part: string, what: string): Record<string, unknown> {
  const bytes = Buffer.from(part, "base64url");
  const object = isUtf8(bytes) ? parseObject(bytes.toString("utf8")) : undefined;
  if (object === undefined) throw new Refused(`its ${what} is not a JSON object`);
  // Refuse a name that occurs twice, because another program that reads the token may use the first of the two values.
  // Compare names without escapes, because JSON can spell a name in several ways.
  const names = (scanObject(bytes) ?? []).map(({ key }) => JSON.parse(`"${key}"`) as string);
  const twice = names.find((name, at) => names.indexOf(name) !== at);
  if (twice !== undefined) throw new Refused(`its ${what} has a name twice`);
  return object;
}

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
