import type { Clock } from "../base/clock.js";
import type { EventLog } from "../base/event.js";
import { refuseSuspended } from "../base/usage.js";
import type { Config } from "../config/schema.js";
import { isBeingErased } from "../store/purges.js";
import type { Store } from "../store/store.js";
import { actingAs } from "./acting.js";
import type { GitHubSignOn } from "./github.js";
import { type HostIdentity, type Identity, isHost, remember } from "./identity.js";
import type { JwtSignOn } from "./jwt.js";
import { isTokenGood, PassingTokens, type Seen, TokenUses, verifyToken } from "./tokens.js";

/** https://github.blog/engineering/behind-githubs-new-authentication-token-formats/ */
const GITHUB = /^(?:gh[a-z]_|github_pat_)/;

/** Why a credential was refused. This is for the operator's log, and never for the client. */
export interface Refusal {
  refused: string;
  /** Set if the credential could not be checked now. It may still be good. */
  isUnchecked?: true;
}

/** The kinds of credentials: a token of the fleet, a JSON Web Token, a GitHub token, and the token of another host. */
export const WAYS = ["token", "jwt", "github", "host"] as const;
/** `unchecked`: the credential could not be checked, for example because the identity provider did not answer. */
export const SIGN_ON_RESULTS = ["accepted", "refused", "unchecked"] as const;

/** One check of a credential, for metrics. It contains nothing about the user. */
export interface SignOnReport {
  via: (typeof WAYS)[number];
  result: (typeof SIGN_ON_RESULTS)[number];
  /** How long the check took, in milliseconds. */
  ms: number;
}

export interface SignOnContext {
  store: Store;
  config: Pick<Config, "identity"> & { limits: Pick<Config["limits"], "groups"> };
  clock: Pick<Clock, "now">;
  /** Must not throw. */
  onSignOn?: ((report: SignOnReport) => void) | undefined;
}

/** The parts that remember the credentials that were presented so far. */
interface Known {
  seen: Seen;
  /** `jwt` and `github` are loaded when somebody first presents such a credential. */
  jwt?: JwtSignOn;
  github?: GitHubSignOn;
}

/** Finds out who presents a credential. Every entry point uses it. */
export class SignOn {
  readonly #context: SignOnContext;
  readonly #known: Known;

  constructor(
    context: SignOnContext,
    known: Known = { seen: { uses: new TokenUses(context.store, context.clock), passing: new PassingTokens() } },
  ) {
    this.#context = context;
    this.#known = known;
  }

  /** Returns a sign-on with the same memory, which reports its checks to another listener. */
  reportingTo(onSignOn: SignOnContext["onSignOn"]): SignOn {
    return new SignOn({ ...this.#context, onSignOn }, this.#known);
  }

  /**
   * The user or the host that presents the credential, or the reason why the credential is not valid.
   *
   * @param address the client's address, for the queue of GitHub checks, which serves the networks of clients in
   * rotation
   */
  async identify(credential: unknown, address?: string): Promise<Identity | HostIdentity | Refusal> {
    const start = performance.now();
    const kind = kindOf(credential);
    const report = (result: SignOnReport["result"], via: SignOnReport["via"] = kind) =>
      this.#context.onSignOn?.({ via, result, ms: performance.now() - start });
    try {
      const found = await this.#identify(kind, credential, address);
      if (kind !== "token" && !("refused" in found) && !isHost(found)) await this.#noteGroups(found);
      if ("refused" in found) report(found.isUnchecked === true ? "unchecked" : "refused");
      else report("accepted", isHost(found) ? "host" : kind);
      return found;
    } catch (error) {
      report("unchecked");
      throw error;
    }
  }

  /**
   * Records which groups with limits the user belongs to, so that these limits also apply when the user shows a
   * credential that names no groups.
   */
  async #noteGroups({ user, groups }: Identity): Promise<void> {
    const { store, config } = this.#context;
    const named = Object.keys(config.limits.groups);
    if (named.length === 0) return;
    const now = named.filter((group) => groups.includes(group));
    const before = (await store.limits.read(user))?.groups ?? [];
    if (now.length === before.length && now.every((group) => before.includes(group))) return;
    await store.limits.noteGroups(user, now);
  }

  async #identify(kind: Identity["via"], credential: unknown, address?: string) {
    const { store, config } = this.#context;
    if (kind === "jwt") {
      if (config.identity.jwt.length === 0) return { refused: "It is a JSON Web Token, but identity.jwt is empty." };
      return await this.#unlessErased(await (await this.#loadJwt()).identify(String(credential)));
    }
    if (kind === "github") {
      if (config.identity.github.api === null)
        return { refused: "It is a GitHub token, but identity.github.api is null." };
      return await this.#unlessErased(await (await this.#loadGitHub()).identify(String(credential), address));
    }
    const unknown = "The fleet did not issue this token, or the token has expired or was revoked.";
    return (await verifyToken(store, credential, this.#known.seen)) ?? { refused: unknown };
  }

  /**
   * A purge revokes the user's tokens of the fleet. The fleet cannot revoke credentials that others issued, so it
   * refuses them until the purge is complete.
   */
  async #unlessErased(found: Identity | Refusal): Promise<Identity | Refusal> {
    if ("refused" in found || !(await isBeingErased(this.#context.store, found.user))) return found;
    return { refused: "The data of this user is being erased." };
  }

  /**
   * Whether the credential of an identity is still valid: it was not revoked, it has not expired, no purge erases the
   * user, and the user is not suspended.
   */
  async isStillGood(identity: Identity): Promise<boolean> {
    const { limits } = this.#context.store;
    if (await isBeingErased(this.#context.store, identity.user)) return false;
    if ((await limits.read(identity.user))?.suspended !== undefined) return false;
    if (identity.via === "jwt") return await (await this.#loadJwt()).isStillGood(identity);
    if (identity.via === "github") return (await this.#loadGitHub()).isStillGood(identity);
    return await isTokenGood(this.#context.store, identity, this.#known.seen.uses);
  }

  /** @throws FleetError `FLEET_USER_SUSPENDED` */
  async refuseSuspended({ user }: Identity): Promise<void> {
    refuseSuspended(await this.#context.store.limits.read(user));
  }

  /** Call this after a turn with the user's GitHub token was refused. The next check then asks GitHub again. */
  recheck(identity: Identity): void {
    this.#known.github?.recheck(identity);
  }

  /** The problems that the operator should know about. Returns each only once. */
  takeWarnings(): string[] {
    return this.#known.jwt?.takeWarnings() ?? [];
  }

  /** The GitHub token of a user who signed on with it and is connected; null for other users. */
  gitHubTokenOf(identity: Identity): string | null {
    return this.#known.github?.tokenOf(identity) ?? null;
  }

  async #loadGitHub(): Promise<GitHubSignOn> {
    if (this.#known.github !== undefined) return this.#known.github;
    const { GitHubSignOn: Loaded } = await import("./github.js");
    const { config, clock } = this.#context;
    this.#known.github ??= new Loaded(config.identity.github, clock);
    return this.#known.github;
  }

  async #loadJwt(): Promise<JwtSignOn> {
    if (this.#known.jwt !== undefined) return this.#known.jwt;
    const { JwtSignOn: Loaded } = await import("./jwt.js");
    this.#known.jwt ??= new Loaded(this.#context);
    return this.#known.jwt;
  }
}

function kindOf(credential: unknown): Identity["via"] {
  if (typeof credential !== "string") return "token";
  // In base64url, the "{" at the beginning of a JSON Web Token becomes "ey".
  if (credential.startsWith("ey")) return "jwt";
  return GITHUB.test(credential) ? "github" : "token";
}

/** How many refusals per minute get their own event. */
const ALONE = 20;
const MINUTE_MS = 60_000;
/**
 * How long to collect further refusals into one event, in milliseconds. Their clients get no answer before that event
 * is written.
 */
const TOGETHER_MS = 2_000;
/**
 * At an entry point where each request shows its credential: how often to record the same credential from the same
 * address, in milliseconds.
 */
const AGAIN_MS = 3_600_000;
const MOST_ADDRESSES = 5;

interface Together {
  count: number;
  addresses: Set<string>;
  written: Promise<void>;
}

/**
 * Records the sign-ons at one entry point as events. Each event is on disk before the client gets its answer. Somebody
 * who tries many credentials cannot fill the disk, because only a few refusals per minute get their own event, and
 * further refusals share events.
 */
export class SignOnEvents {
  readonly #events: EventLog;
  readonly #via: "door" | "http";
  /** When the sign-on of each credential and address was last recorded, by `performance.now()`. */
  readonly #noted = new Map<string, number>();
  #minute = { sinceMs: Number.NEGATIVE_INFINITY, count: 0 };
  #together: Together | undefined;

  constructor(events: EventLog, via: "door" | "http") {
    this.#events = events;
    this.#via = via;
  }

  /** Records an accepted sign-on. @throws FleetError `FLEET_EVENTS_UNWRITABLE`: the client must not be admitted. */
  async accepted(identity: Identity | HostIdentity, address: string): Promise<void> {
    const { tokenId } = identity;
    const user = isHost(identity) ? null : identity.user;
    await this.#events.record({
      type: "signon.accepted",
      actor: { user, tokenId, via: this.#via },
      user,
      reason: isHost(identity) ? "host" : identity.via,
      detail: isHost(identity) ? `host ${identity.host}, from ${address}` : `from ${address}`,
    });
  }

  /**
   * Like {@link accepted}, but for an entry point where each request shows the credential. Records one sign-on per hour
   * for each credential and address.
   */
  async acceptedAgain(identity: Identity, address: string): Promise<void> {
    const key = `${identity.tokenId} ${address}`;
    const now = performance.now();
    const last = this.#noted.get(key);
    if (last !== undefined && now - last < AGAIN_MS) return;
    await this.accepted(identity, address);
    remember(this.#noted, key, now);
  }

  /**
   * Records a refusal. Never rejects, because the client is refused in any case.
   *
   * @param tokenId the id in the refused credential, if it looks like a token of the fleet
   */
  async refused(tokenId: string | undefined, address: string): Promise<void> {
    const now = performance.now();
    if (now - this.#minute.sinceMs > MINUTE_MS) this.#minute = { sinceMs: now, count: 0 };
    this.#minute.count += 1;
    if (this.#minute.count <= ALONE) await this.#record(tokenId ?? null, `from ${address}`);
    else await this.#share(address);
  }

  async #share(address: string): Promise<void> {
    this.#together ??= this.#begin();
    const together = this.#together;
    together.count += 1;
    if (together.addresses.size < MOST_ADDRESSES) together.addresses.add(address);
    await together.written;
  }

  #begin(): Together {
    const addresses = new Set<string>();
    const together: Together = { count: 0, addresses, written: Promise.resolve() };
    together.written = (async () => {
      await new Promise<void>((resolve) => void setTimeout(resolve, TOGETHER_MS).unref());
      this.#together = undefined;
      await this.#record(null, `${together.count} refusals, from ${[...addresses].join(", ")}`);
    })();
    return together;
  }

  async #record(tokenId: string | null, detail: string): Promise<void> {
    const actor = { user: null, tokenId, via: this.#via };
    const event = { type: "signon.refused", actor, outcome: "refused", reason: "FLEET_TOKEN_REFUSED", detail } as const;
    await this.#events.record(event).catch(() => "the log has warned");
  }
}

/** Runs work for a user who signed on, so that its events name the user and the token. */
export function actingFor<T>({ user, tokenId }: Identity, via: "door" | "http", work: () => T): T {
  return actingAs({ user, tokenId, via }, work);
}
