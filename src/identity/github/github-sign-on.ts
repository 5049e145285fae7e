import type { Config } from "../../config/schema.js";
import { sha256 } from "../../config/values/text.js";
import type { Clock } from "../../runtime/clock.js";
import { NoAnswer } from "../fetch-json.js";
import type { Identity } from "../identity.js";
import type { Refusal } from "../sign-on.js";
import { CheckQueue } from "./check-queue.js";
import { type Account, GitHubApi, NotAdmitted } from "./github-api.js";

/** How long an answer of GitHub counts, in milliseconds. */
const GOOD_MS = 5 * 60_000;
const REFUSED_MS = 30_000;
/** While GitHub cannot be asked, its last answer counts for this time, in milliseconds. */
const LAST_MS = 60 * 60_000;
/** The shortest time between two attempts while GitHub cannot be asked, in milliseconds. */
const AGAIN_MS = 2_000;
/** How many accounts are remembered, and how many refusals. For one more, the oldest is forgotten. */
const MOST_ANSWERS = 10_000;

interface Answer {
  account: Account | null;
  /** When GitHub gave the account. */
  sinceMs: number;
  /** When to ask again. */
  untilMs: number;
  refused: string;
  /** Whether GitHub refused the token. Otherwise, it could not be asked. */
  isFinal?: true;
}

const BUSY: Answer = { account: null, sinceMs: 0, untilMs: 0, refused: "Too many GitHub tokens wait for a check." };

/** Finds out whose GitHub token a client shows. Keeps GitHub's answers by a hash of the token. */
export class GitHubSignOn {
  readonly #api: GitHubApi;
  readonly #clock: Pick<Clock, "now">;
  readonly #queue: CheckQueue;
  readonly #accounts = new Map<string, Answer>();
  /** In a map of their own, so that made-up tokens do not make the fleet forget accounts. */
  readonly #refusals = new Map<string, Answer>();
  readonly #checks = new Map<string, Promise<Answer>>();
  /** The tokens of the clients that are connected. */
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
    const known = this.#known(hash);
    const isFresh = known !== undefined && this.#clock.now() < known.untilMs;
    const wasGood = known !== undefined && known.account !== null;
    const { account, refused, isFinal } = isFresh ? known : await this.#check(hash, token, wasGood ? null : address);
    if (account === null) return isFinal === true ? { refused } : { refused, isUnchecked: true };
    const { login: user, organizations: groups, expiresAt } = account;
    const tokenId = `github:${hash.slice(0, 32)}`;
    const identity: Identity = { user, scopes: ["use"], groups, tokenId, expiresAt, via: "github" };
    this.#tokens.set(identity, token);
    return identity;
  }

  /** Answers at once by what GitHub answered last, and asks GitHub again in the background when that is old. */
  isStillGood(identity: Identity): boolean {
    const token = this.#tokens.get(identity);
    if (token === undefined || Date.now() >= Date.parse(identity.expiresAt ?? "9999-01-01")) return false;
    const hash = sha256(token);
    const known = this.#known(hash);
    if (known === undefined || this.#clock.now() >= known.untilMs) void this.#check(hash, token, null);
    return known === undefined || known.account?.login === identity.user;
  }

  /** The token of a client that is connected, for the client's own sessions. */
  tokenOf(identity: Identity): string | null {
    return this.#tokens.get(identity) ?? null;
  }

  #known(hash: string): Answer | undefined {
    return this.#accounts.get(hash) ?? this.#refusals.get(hash);
  }

  /** Never rejects. @param address null for a token that was good before */
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

  #remember(hash: string, answer: Answer): void {
    this.#accounts.delete(hash);
    this.#refusals.delete(hash);
    const answers = answer.account === null ? this.#refusals : this.#accounts;
    answers.set(hash, answer);
    const oldest = answers.keys().next().value;
    if (answers.size > MOST_ANSWERS && oldest !== undefined) answers.delete(oldest);
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
      const lasts = known !== undefined && known.account !== null && nowMs - known.sinceMs < LAST_MS;
      return { account: null, sinceMs: 0, ...(lasts ? known : {}), untilMs: nowMs + AGAIN_MS, refused };
    }
  }
}
