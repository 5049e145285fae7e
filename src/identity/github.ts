import type { Clock } from "../base/clock.js";
import { quote } from "../base/errors.js";
import { readUser, userFault } from "../base/values/names.js";
import { sha256 } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { fetchJson, type JsonAnswer, NoAnswer } from "./fetch-json.js";
import { type Identity, remember } from "./identity.js";
import type { Refusal } from "./sign-on.js";

/** How many tokens may be checked at the same time, so that strangers cannot make the fleet flood GitHub. */
export const MOST_CHECKS = 64;
/**
 * How many checks may wait. A front door limits the number of connections without a good token. Checks may take up at
 * most half of this number. All checks of this queue, running or waiting, fit into that half.
 */
export const MOST_WAITING = 512;
/**
 * How long a check may wait, in milliseconds. After this time, the front door closes a connection without a good token
 * anyway.
 */
const LONGEST_WAIT_MS = 10_000;

interface Waiting {
  sinceMs: number;
  /** Called once. With false, the check never runs. */
  settle(mayRun: boolean): void;
}

/**
 * Runs a bounded number of checks at once, and lets further checks wait. Serves the networks of the clients in
 * rotation, so that a stranger with many made-up tokens hardly delays anybody else. If too many checks wait, drops the
 * newest check of the network with the most waiting checks.
 */
export class CheckQueue {
  readonly #clock: Pick<Clock, "now">;
  /** The checks that run before all others, because their tokens were good before. */
  readonly #first: Waiting[] = [];
  /** The other waiting checks, by network. The first network is served next, and then moves to the end. */
  readonly #networks = new Map<string, Waiting[]>();
  #waiting = 0;
  #running = 0;

  constructor(clock: Pick<Clock, "now">) {
    this.#clock = clock;
  }

  /** Whether the next check has to wait. */
  get isFull(): boolean {
    return this.#running >= MOST_CHECKS;
  }

  /**
   * Runs a check when it is its turn. Resolves with null if too many checks wait, or if this check has waited too long.
   *
   * @param address the address of the client that shows the token. Null if the token was good before: its check then
   * precedes those of all addresses
   */
  async run<T>(address: string | null, check: () => Promise<T>): Promise<T | null> {
    if (!this.isFull) this.#running++;
    else if (!(await this.#turn(address))) return null;
    try {
      return await check();
    } finally {
      this.#running--;
      this.#passOn();
    }
  }

  async #turn(address: string | null): Promise<boolean> {
    return await new Promise<boolean>((settle) => {
      this.#laneOf(address).push({ sinceMs: this.#clock.now(), settle });
      this.#waiting++;
      if (this.#waiting <= MOST_WAITING) return;
      let longest = this.#first;
      for (const lane of this.#networks.values()) {
        if (longest === this.#first || lane.length > longest.length) longest = lane;
      }
      this.#waiting--;
      longest.pop()?.settle(false);
    });
  }

  #laneOf(address: string | null): Waiting[] {
    if (address === null) return this.#first;
    const network = networkOf(address);
    const lane = this.#networks.get(network) ?? [];
    this.#networks.set(network, lane);
    return lane;
  }

  /** Lets the next check run, and drops the checks that have waited too long. */
  #passOn(): void {
    for (let next = this.#take(); next !== undefined; next = this.#take()) {
      const isInTime = this.#clock.now() - next.sinceMs < LONGEST_WAIT_MS;
      if (isInTime) this.#running++;
      next.settle(isInTime);
      if (isInTime) return;
    }
  }

  #take(): Waiting | undefined {
    let found = this.#first.shift();
    for (const [network, lane] of this.#networks) {
      if (found !== undefined) break;
      found = lane.shift();
      this.#networks.delete(network);
      if (lane.length > 0) this.#networks.set(network, lane);
    }
    if (found !== undefined) this.#waiting--;
    return found;
  }
}

/**
 * The network that one stranger usually controls: a single IPv4 address, or an IPv6 network with a prefix of 64 bits.
 */
function networkOf(address: string): string {
  const [head = "", tail] = address.split("::");
  const groups = head === "" ? [] : head.split(":");
  if (!address.includes(":") || address.includes(".")) return address;
  if (tail !== undefined) groups.push(...Array.from({ length: 8 - groups.length }, () => "0"));
  return groups.slice(0, 4).join(":");
}

/** The GitHub account to which a token belongs. */
export interface Account {
  login: string;
  /** The configured organizations of which the account is an active member. */
  organizations: string[];
  /** When the token expires, in ISO 8601; null if GitHub reports no such time. */
  expiresAt: string | null;
}

/** The error if GitHub or the configuration does not admit the account. The message is for the operator's log. */
export class NotAdmitted extends Error {}

/** Asks GitHub to which account a token belongs. */
export class GitHubApi {
  readonly #url: string;
  readonly #organizations: readonly string[];

  constructor(url: string, organizations: readonly string[]) {
    this.#url = url.replace(/\/$/, "");
    this.#organizations = organizations;
  }

  /**
   * @throws NotAdmitted when GitHub or the configuration refuses the account; NoAnswer when GitHub gives no answer now.
   */
  async accountOf(token: string): Promise<Account> {
    const { status, body, headers } = await this.#ask("/user", token);
    if (status === 401) throw new NotAdmitted("GitHub does not know the token");
    if (status === 403) throw new NotAdmitted("GitHub does not let the token read its account");
    if (status !== 200) throw new NoAnswer(`${this.#url}/user answers with status ${status}`);
    const login = body?.login;
    if (typeof login !== "string") throw new NoAnswer("it names no account");
    if (readUser(login) !== login) throw new NotAdmitted(`the login ${quote(login)} ${userFault(login)}`);
    const answers = this.#organizations.map(async (name) => ((await this.#isMember(name, login, token)) ? [name] : []));
    const organizations = (await Promise.all(answers)).flat();
    if (organizations.length === 0 && answers.length > 0) {
      throw new NotAdmitted(`${login} is not an active member of ${this.#organizations.join(" or ")}`);
    }
    const endMs = Date.parse(headers.get("github-authentication-token-expiration") ?? "");
    return { login, organizations, expiresAt: Number.isNaN(endMs) ? null : new Date(endMs).toISOString() };
  }

  /** Asks GitHub in two ways, because a token without the scope `read:org` may use only the second. */
  async #isMember(organization: string, login: string, token: string): Promise<boolean> {
    const own = await this.#ask(`/user/memberships/orgs/${organization}`, token);
    if (own.status === 200) return own.body?.state === "active";
    return (await this.#ask(`/orgs/${organization}/members/${login}`, token)).status === 204;
  }

  /**
   * Tries twice, because most failures of the network and of GitHub are short.
   *
   * @throws NoAnswer when GitHub does not decide now
   */
  async #ask(path: string, token: string): Promise<JsonAnswer> {
    const headers = {
      authorization: `Bearer ${token}`,
      accept: "application/vnd.github+json",
      "user-agent": "copilotfleet",
      "x-github-api-version": "2022-11-28",
    };
    const ask = async () => await fetchJson(`${this.#url}${path}`, headers);
    const first = await ask().catch((error: unknown) => {
      if (error instanceof NoAnswer) return null;
      throw error;
    });
    const answer = first === null || first.status >= 500 ? await ask() : first;
    if (isRateLimited(answer)) throw new NoAnswer("its rate limit is reached");
    if (answer.status >= 500) throw new NoAnswer(`${this.#url}${path} answers with status ${answer.status}`);
    return answer;
  }
}

/**
 * Whether GitHub refuses all requests for a while. It also does so after several wrong tokens from one address, so
 * strangers can cause it:
 * https://docs.github.com/en/rest/authentication/authenticating-to-the-rest-api#failed-login-limit and
 * https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit
 */
function isRateLimited({ status, headers, body }: JsonAnswer): boolean {
  if (status === 429) return true;
  if (status !== 403) return false;
  const isCounted = headers.get("x-ratelimit-remaining") === "0" || headers.has("retry-after");
  return isCounted || /rate limit|login attempts/i.test(String(body?.message));
}

/** How long to use GitHub's answer before asking again, in milliseconds: for an account, and for a refusal. */
const GOOD_MS = 5 * 60_000;
const REFUSED_MS = 30_000;
/** How long to use the account that GitHub named last if GitHub no longer answers, in milliseconds. */
const LAST_MS = 60 * 60_000;
/** The shortest time between two attempts while GitHub does not answer, in milliseconds. */
const AGAIN_MS = 2_000;

interface Answer {
  account: Account | null;
  /** When GitHub named the account. */
  sinceMs: number;
  /** When to ask again. */
  untilMs: number;
  refused: string;
  /** Set if the token was refused. If it is absent and `account` is null, the token could not be checked. */
  isFinal?: true;
}

const BUSY: Answer = { account: null, sinceMs: 0, untilMs: 0, refused: "Too many GitHub tokens wait for a check." };

/** Finds out whose GitHub token a client shows. Caches GitHub's answers under a hash of the token. */
export class GitHubSignOn {
  readonly #api: GitHubApi;
  readonly #clock: Pick<Clock, "now">;
  readonly #queue: CheckQueue;
  readonly #accounts = new Map<string, Answer>();
  readonly #refusals = new Map<string, Answer>();
  readonly #checks = new Map<string, Promise<Answer>>();
  /** The GitHub token of each connected client, by the client's identity. */
  readonly #tokens = new WeakMap<Identity, string>();

  constructor({ api, organizations }: Config["identity"]["github"], clock: Pick<Clock, "now">) {
    this.#api = new GitHubApi(api ?? "", organizations);
    this.#clock = clock;
    this.#queue = new CheckQueue(clock);
  }

  /** @param address the address of the client that shows the token */
  async identify(token: string, address = ""): Promise<Identity | Refusal> {
    if (!/^\w{1,512}$/.test(token)) return { refused: "This is not a GitHub token." };
    const hash = sha256(token);
    const { account, refused, isFinal } = await this.#answerTo(hash, token, address);
    if (account === null) return isFinal === true ? { refused } : { refused, isUnchecked: true };
    const { login: user, organizations: groups, expiresAt } = account;
    const tokenId = `github:${hash.slice(0, 32)}`;
    const identity: Identity = { user, scopes: ["use"], groups, tokenId, expiresAt, via: "github" };
    this.#tokens.set(identity, token);
    return identity;
  }

  /**
   * Whether an identity is still valid by GitHub's last answer. If that answer is old, asks GitHub again in the
   * background.
   *
   * If another front door relays the client, this process may not have the client's token. The result is then true,
   * because the other front door checks the token, and closes the connection if necessary.
   */
  isStillGood(identity: Identity): boolean {
    if (Date.now() >= Date.parse(identity.expiresAt ?? "9999-01-01")) return false;
    const token = this.#tokens.get(identity);
    if (token === undefined) return true;
    const hash = sha256(token);
    const known = this.#known(hash);
    if (known === undefined || this.#clock.now() >= known.untilMs) void this.#check(hash, token, null);
    return known === undefined || known.account?.login === identity.user;
  }

  /** Call this after a turn with the client's token was refused. The next check then asks GitHub again. */
  recheck(identity: Identity): void {
    const token = this.#tokens.get(identity);
    const known = token === undefined ? undefined : this.#accounts.get(sha256(token));
    if (known !== undefined) known.untilMs = this.#clock.now();
  }

  /** The token of a connected client, for the client's own sessions; null if this process does not have the token. */
  tokenOf(identity: Identity): string | null {
    return this.#tokens.get(identity) ?? null;
  }

  async #answerTo(hash: string, token: string, address: string): Promise<Answer> {
    const nowMs = this.#clock.now();
    const known = this.#known(hash);
    if (known !== undefined && nowMs < known.untilMs) return known;
    if (!lasts(known, nowMs)) return await this.#check(hash, token, address);
    const check = this.#check(hash, token, null);
    // If strangers have filled the queue, use GitHub's last answer, so that a known user does not wait behind them.
    return this.#queue.isFull ? known : await check;
  }

  /** Never rejects. @param address null if the token was good before: its check then precedes all others */
  async #check(hash: string, token: string, address: string | null): Promise<Answer> {
    const running = this.#checks.get(hash);
    if (running !== undefined) return await running;
    const check = this.#queue
      .run(address, async () => await this.#ask(token, this.#clock.now(), this.#known(hash)))
      .then((answer) => {
        this.#checks.delete(hash);
        if (answer !== null) this.#remember(hash, answer);
        return answer ?? BUSY;
      });
    this.#checks.set(hash, check);
    return await check;
  }

  /**
   * Stores refusals separately, because strangers can cause any number of them, and would otherwise evict the accounts.
   */
  #remember(hash: string, answer: Answer): void {
    const [place, other] =
      answer.account === null ? [this.#refusals, this.#accounts] : [this.#accounts, this.#refusals];
    other.delete(hash);
    remember(place, hash, answer);
  }

  #known(hash: string): Answer | undefined {
    return this.#accounts.get(hash) ?? this.#refusals.get(hash);
  }

  async #ask(token: string, nowMs: number, known: Answer | undefined): Promise<Answer> {
    try {
      const account = await this.#api.accountOf(token);
      return { account, sinceMs: nowMs, untilMs: nowMs + GOOD_MS, refused: "" };
    } catch (error) {
      if (error instanceof NotAdmitted) {
        const refused = `The GitHub token is refused: ${error.message}.`;
        return { account: null, sinceMs: 0, untilMs: nowMs + REFUSED_MS, refused, isFinal: true };
      }
      const reason = error instanceof NoAnswer ? error.message : String(error);
      const refused = `The GitHub token cannot be checked now, so the client may try again: GitHub: ${reason}.`;
      const last = lasts(known, nowMs) ? known : { account: null, sinceMs: 0 };
      return { ...last, untilMs: nowMs + AGAIN_MS, refused };
    }
  }
}

/** Whether the last answer may still be used while GitHub does not answer. */
function lasts(known: Answer | undefined, nowMs: number): known is Answer {
  return known !== undefined && known.account !== null && nowMs - known.sinceMs < LAST_MS;
}
