import { readFileSync, statSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { LocalJWKSet } from "jose";
import type { IssuerConfig } from "../../config/identity.js";
import { isSafeUrl } from "../../config/safe-url.js";
import { parseObject } from "../../config/values/json.js";
import { systemCode } from "../../errors.js";
import type { Clock } from "../../runtime/clock.js";
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
export const LAST_MS = 24 * 60 * 60_000;
/**
 * The shortest time between two attempts to fetch keys, in milliseconds. It keeps tokens with made-up key ids from
 * causing a flood of requests.
 */
export const COOLDOWN_MS = 30_000;
const LARGEST_FILE_BYTES = 512 * 1024;

/** The error if there are no usable keys of an issuer. The message is for the operator's log. */
export class NoKeys extends Error {}

interface Keys {
  set: LocalJWKSet;
  count: number;
  atMs: number;
}

/** The public keys of one issuer, from its address or from a file. */
export class IssuerKeys {
  readonly #issuer: IssuerConfig;
  readonly #clock: Pick<Clock, "now">;
  #keys: Keys | undefined;
  #fetching: Promise<void> | undefined;
  #triedMs = Number.NEGATIVE_INFINITY;
  #problem: string | undefined;
  /** The version of the file that was read last. */
  #version = "";
  #isReported = false;

  constructor(issuer: IssuerConfig, clock: Pick<Clock, "now">) {
    this.#issuer = issuer;
    this.#clock = clock;
  }

  /**
   * The keys for a token.
   *
   * @param seen keys among which the token's key was not found. If these are the newest known keys, asks the issuer for
   * newer ones.
   * @throws NoKeys when there are no keys that are younger than a day.
   */
  async current(seen?: LocalJWKSet): Promise<LocalJWKSet> {
    const { jwks } = this.#issuer;
    if (jwks?.startsWith("/")) await this.#readFile(jwks);
    else if (this.#keys === undefined || seen === this.#keys.set) await this.#refresh();
    else if (this.#ageMs > STALE_MS)
      await Promise.race([this.#refresh(), delay(PATIENCE_MS, undefined, { ref: false })]);
    else if (this.#ageMs > FRESH_MS) void this.#refresh();
    if (this.#keys !== undefined && this.#ageMs <= LAST_MS) return this.#keys.set;
    throw new NoKeys(`no keys of ${this.#issuer.issuer}: ${this.#problem ?? "they are older than a day"}`);
  }

  /** Gets the keys now. @returns their number, for `doctor`. @throws NoKeys */
  async count(): Promise<number> {
    await this.current();
    return this.#keys?.count ?? 0;
  }

  /** An unreported problem with getting the keys; undefined if there is none. Known keys may still work. */
  takeWarning(): string | undefined {
    if (this.#problem === undefined || this.#isReported) return undefined;
    this.#isReported = true;
    const known = this.#keys === undefined ? "" : "; the known keys work for a day";
    return `The keys of ${this.#issuer.issuer} cannot be read: ${this.#problem}${known}`;
  }

  get #ageMs(): number {
    return this.#clock.now() - (this.#keys?.atMs ?? Number.NEGATIVE_INFINITY);
  }

  /** Fetches the keys, unless the last attempt was a moment ago. Never rejects. */
  async #refresh(): Promise<void> {
    if (this.#fetching === undefined && this.#clock.now() - this.#triedMs < COOLDOWN_MS) return;
    this.#fetching ??= this.#fetch().finally(() => {
      this.#fetching = undefined;
    });
    await this.#fetching;
  }

  async #fetch(): Promise<void> {
    this.#triedMs = this.#clock.now();
    try {
      const address = this.#issuer.jwks ?? (await discover(this.#issuer.issuer));
      await this.#take(await getObject(address));
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Reads the file again if it has changed. */
  async #readFile(path: string): Promise<void> {
    try {
      const { mtimeMs, size, ino, ctimeMs } = statSync(path);
      const version = [mtimeMs, ctimeMs, size, ino].join();
      if (version !== this.#version) {
        if (size > LARGEST_FILE_BYTES) throw new NoAnswer(`${path} has ${size} bytes`);
        const content = parseObject(readFileSync(path, "utf8"));
        if (content === undefined) throw new NoAnswer(`${path} is not a JSON object`);
        await this.#take(content);
        this.#version = version;
      } else if (this.#keys !== undefined) this.#keys.atMs = this.#clock.now();
    } catch (error) {
      this.#fail(systemCode(error) === undefined ? error : new NoAnswer(`${path}: ${systemCode(error)}`));
    }
  }

  async #take(content: Record<string, unknown>): Promise<void> {
    const { keys } = content;
    if (!Array.isArray(keys) || keys.length === 0) throw new NoAnswer("the answer has no keys");
    const { createLocalJWKSet } = await import("jose");
    // Throws if a key is not an object.
    const set = createLocalJWKSet(content as unknown as Parameters<typeof createLocalJWKSet>[0]);
    this.#keys = { set, count: keys.length, atMs: this.#clock.now() };
    this.#problem = undefined;
    this.#isReported = false;
  }

  #fail(error: unknown): void {
    const problem = error instanceof NoAnswer ? error.message : "the answer is not a JSON Web Key Set";
    if (problem !== this.#problem) this.#isReported = false;
    this.#problem = problem;
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
