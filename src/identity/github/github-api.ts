import { readUser, userFault } from "../../config/values/user-id.js";
import { quote } from "../../errors.js";
import { fetchJson, type JsonAnswer, NoAnswer } from "../fetch-json.js";

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
    const { body, headers } = await this.#ask("/user", token);
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
    const own = await this.#membership(`/user/memberships/orgs/${organization}`, token);
    if (own.status === 200) return own.body?.state === "active";
    return (await this.#membership(`/orgs/${organization}/members/${login}`, token)).status === 204;
  }

  async #membership(path: string, token: string): Promise<JsonAnswer> {
    const answer = await this.#get(path, token);
    const { status } = answer;
    if (status >= 500 || isRateLimited(answer)) throw new NoAnswer(`it answers with status ${status}`);
    return answer;
  }

  async #ask(path: string, token: string): Promise<JsonAnswer> {
    const answer = await this.#get(path, token);
    const { status } = answer;
    if (status === 200) return answer;
    if (isRateLimited(answer)) throw new NoAnswer("its rate limit is reached");
    if (status === 401) throw new NotAdmitted("GitHub does not know the token");
    if (status === 403) throw new NotAdmitted("GitHub does not let the token read its account");
    throw new NoAnswer(`${this.#url}${path} answers with status ${status}`);
  }

  /** Tries twice, because most failures of the network and of GitHub are short. */
  async #get(path: string, token: string): Promise<JsonAnswer> {
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
    return first === null || first.status >= 500 ? await ask() : first;
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
