import type { Config } from "../../config/schema.js";
import { sha256 } from "../../config/values/text.js";
import type { Clock } from "../../runtime/clock.js";
import { NoAnswer } from "../fetch-json.js";
import type { Identity } from "../identity.js";
import type { Refusal } from "../sign-on.js";
import { CheckQueue } from "./check-queue.js";
import { type Account, GitHubApi, NotAdmitted } from "./github-api.js";

/** How long to use GitHub's answer before asking again, in milliseconds: for an account, and for a refusal. */
const GOOD_MS = 5 * 60_000;
const REFUSED_MS = 30_000;
/** How long to use the account that GitHub named last if GitHub no longer answers, in milliseconds. */
const LAST_MS = 60 * 60_000;
/** The shortest time between two attempts while GitHub does not answer, in milliseconds. */
const AGAIN_MS = 2_000;
/** How many accounts, and how many refusals, are remembered. */
const MOST_ANSWERS = 10_000;

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
    place.delete(hash);
    place.set(hash, answer);
    const oldest = place.keys().next().value;
    if (place.size > MOST_ANSWERS && oldest !== undefined) place.delete(oldest);
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
