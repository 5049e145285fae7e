import { setTimeout as delay } from "node:timers/promises";
import { abortable, NEVER } from "../base/clock.js";
import { FleetError, isFleetError } from "../base/errors.js";
import type { TokenSource } from "../base/server.js";
import type { Environment } from "../config/load/paths.js";
import type { Config } from "../config/schema.js";
import { NoAnswer } from "../config/secret.js";
import { type PlainSource, resolveToken } from "./github-token.js";
import { CachedSecret } from "./provider-key.js";

/** For how many milliseconds the output of a token command is reused before the command runs again. */
const COMMAND_FRESH_MS = 5_000;
/**
 * How many times to try to read a file, and the pause between two tries in milliseconds. A file may be missing or empty
 * for a moment while another program replaces it.
 */
const [FILE_TRIES, FILE_PAUSE_MS] = [3, 100];
/** How many tokens stay in memory, because a command's last token is used if the command hangs. */
const MAX_KEPT = 1_000;
/** How long GitHub may take to answer, in milliseconds. */
const MINT_MS = 10_000;
/**
 * An App's token is renewed after this part of its lifetime. This is early, because a turn keeps the token with which
 * it began.
 */
const RENEWED_AFTER = 0.5;
/**
 * The pauses after a failed renewal of an App's token, in milliseconds: the first, the longest while the last token is
 * still valid, and the longest without a valid token.
 */
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS, LONGEST_WITHOUT_MS] = [1_000, 60_000, 5_000];

interface TokenRequest {
  /** The user whose token is needed; null for a shared server. */
  user: string | null;
  signal?: AbortSignal | undefined;
}

/**
 * The GitHub tokens of a fleet. Reads a source again when its token may have changed, so that callers get the current
 * one.
 */
class GitHubTokens {
  readonly #auth: Config["auth"];
  readonly #env: Environment;
  /** The tokens from variables, files and commands. The one that was used last is at the end. */
  readonly #secrets = new Map<string, CachedSecret>();
  #app: AppToken | undefined;

  constructor(auth: Config["auth"], env: Environment) {
    this.#auth = auth;
    this.#env = env;
  }

  /**
   * The current token of a source.
   *
   * @throws FleetError `FLEET_TOKEN_UNAVAILABLE`; `FLEET_CREDENTIAL_REFUSED` when GitHub refuses
   * an App; the signal's reason when it aborts. No message contains the token.
   */
  async get(source: TokenSource, { user, signal }: TokenRequest): Promise<string> {
    signal?.throwIfAborted();
    // The work continues after an abort, because other callers may wait for it, too.
    const token = source.from === "app" ? this.#ofApp() : this.#secretOf(source, user).get();
    return await abortable(token, signal ?? NEVER);
  }

  /**
   * Call it when GitHub has refused the token of a source. The next call of {@link get} then reads the source again.
   */
  forget(source: TokenSource, user: string | null): void {
    if (source.from === "app") this.#app?.forget();
    else this.#secrets.delete(keyOf(source, user));
  }

  #secretOf(source: PlainSource, user: string | null): CachedSecret {
    const key = keyOf(source, user);
    const secret = this.#secrets.get(key) ?? this.#newSecret(source, user);
    this.#secrets.delete(key);
    this.#secrets.set(key, secret);
    const oldest = this.#secrets.keys().next().value;
    if (this.#secrets.size > MAX_KEPT && oldest !== undefined) this.#secrets.delete(oldest);
    return secret;
  }

  #newSecret(source: PlainSource, user: string | null): CachedSecret {
    const read = async () => await resolveToken(source, { user, env: this.#env });
    if (source.from === "command") {
      // If the command does not answer, use its last token, and do not wait for it again soon. If it fails, its last
      // token may be revoked.
      const outlives = (error: unknown) => isFleetError(error) && error.cause instanceof NoAnswer;
      return new CachedSecret(read, { freshMs: COMMAND_FRESH_MS, outlives, renews: true });
    }
    return new CachedSecret(
      async (isKnown) => {
        for (let tries = 1; ; tries++) {
          try {
            return await read();
          } catch (error) {
            if (source.from !== "file" || !isKnown || tries === FILE_TRIES) throw error;
            await delay(FILE_PAUSE_MS);
          }
        }
      },
      { freshMs: 0 },
    );
  }

  async #ofApp(): Promise<string> {
    const { githubApp } = this.#auth;
    if (githubApp === null) {
      throw new FleetError("FLEET_TOKEN_UNAVAILABLE", "The token comes from auth.githubApp, which is not set.", {
        suggestions: ["Set auth.githubApp again, or start the server with another token."],
      });
    }
    this.#app ??= new AppToken(async (signal) => {
      const { mintInstallationToken } = await import("./github-app.js");
      return await mintInstallationToken(githubApp, this.#env, signal);
    });
    return await this.#app.get();
  }
}

const instances = new WeakMap<Config["auth"], GitHubTokens>();

/**
 * Returns the tokens of this configuration: always the same instance in this process, so that a token is renewed only
 * once.
 */
export function tokensOf({ auth }: Pick<Config, "auth">, env: Environment): GitHubTokens {
  const known = instances.get(auth) ?? new GitHubTokens(auth, env);
  instances.set(auth, known);
  return known;
}

type Mint = (signal: AbortSignal) => Promise<{ token: string; lifetimeMs: number }>;

/** The token of an App. Renews the token before it expires, once for all callers. */
export class AppToken {
  readonly #mint: Mint;
  readonly #now: () => number;
  #known: { token: string; lifetimeMs: number; since: number } | undefined;
  #renewing: Promise<string> | undefined;
  #failure: { error: unknown; since: number; pauseMs: number } | undefined;

  /** @param now a clock in milliseconds that does not stop while the machine sleeps. Only tests set it. */
  constructor(mint: Mint, now: () => number = Date.now) {
    this.#mint = mint;
    this.#now = now;
  }

  async get(): Promise<string> {
    const known = this.#known;
    const left = known === undefined ? 0 : 1 - this.#since(known) / known.lifetimeMs;
    if (known !== undefined && left > RENEWED_AFTER && left <= 1) return known.token;
    const isGood = known !== undefined && left > 0 && left <= 1;
    const failure = this.#failure;
    if (failure !== undefined) {
      const since = this.#since(failure);
      const pauseMs = isGood ? failure.pauseMs : Math.min(failure.pauseMs, LONGEST_WITHOUT_MS);
      if (since >= 0 && since < pauseMs) {
        if (isGood) return known.token;
        throw failure.error;
      }
    }
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = undefined;
    });
    try {
      return await this.#renewing;
    } catch (error) {
      // The last token is still valid, unless `#renew` has dropped it because GitHub refused the App.
      if (isGood && this.#known === known) return known.token;
      throw error;
    }
  }

  forget(): void {
    this.#known = undefined;
  }

  async #renew(): Promise<string> {
    try {
      const { token, lifetimeMs } = await this.#mint(AbortSignal.timeout(MINT_MS));
      this.#known = { token, lifetimeMs, since: this.#now() };
      this.#failure = undefined;
      return token;
    } catch (error) {
      if (isFleetError(error, "FLEET_CREDENTIAL_REFUSED")) this.#known = undefined;
      const pauseMs = this.#failure === undefined ? FIRST_PAUSE_MS : this.#failure.pauseMs * 2;
      this.#failure = { error, since: this.#now(), pauseMs: Math.min(pauseMs, LONGEST_PAUSE_MS) };
      throw error;
    }
  }

  #since({ since }: { since: number }): number {
    return this.#now() - since;
  }
}

function keyOf(source: TokenSource, user: string | null): string {
  return JSON.stringify([source, user]);
}
