import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { GitHubSignOn } from "../../src/identity/github.js";
import type { Identity } from "../../src/identity/identity.js";
import { eventually } from "../fixtures/eventually.js";
import { GitHubAccounts } from "../fixtures/identity/github-accounts.js";

const MINUTE_MS = 60_000;
const TOKEN = "gho_canaryAlice";

let github: GitHubAccounts;
let clock: { ms: number; now: () => number };
beforeEach(async () => {
  github = await GitHubAccounts.open();
  clock = { ms: 1, now: () => clock.ms };
  github.accounts.set(TOKEN, { login: "Alice" });
});
afterEach(async () => {
  vi.restoreAllMocks();
  await github[Symbol.asyncDispose]();
});

const signOn = (organizations: string[] = []) => new GitHubSignOn({ api: github.url, organizations }, clock);
const users = () => github.asked.filter(({ path }) => path === "/user").length;

async function identityOf(sign: GitHubSignOn, token = TOKEN): Promise<Identity> {
  const found = await sign.identify(token);
  if ("refused" in found) throw new Error(found.refused);
  return found;
}

describe("a GitHub token", () => {
  it("a GitHub token signs on as the account that GitHub names, and is checked once in five minutes", async () => {
    const sign = signOn();
    const found = await Promise.all(Array.from({ length: 20 }, async () => await identityOf(sign)));
    expect(found[0]).toEqual({
      user: "Alice",
      scopes: ["use"],
      groups: [],
      tokenId: expect.stringMatching(/^github:[0-9a-f]{32}$/),
      expiresAt: null,
      via: "github",
    });
    clock.ms += 4 * MINUTE_MS;
    await identityOf(sign);
    expect(users()).toBe(1);
    clock.ms += 2 * MINUTE_MS;
    await identityOf(sign);
    expect(users()).toBe(2);
    expect(sign.tokenOf(await identityOf(sign))).toBe(TOKEN);
  });

  it("a GitHub token expires at the time that GitHub reports", async () => {
    github.accounts.set(TOKEN, { login: "Alice", expires: "2099-12-01 10:00:00 UTC" });
    expect((await identityOf(signOn())).expiresAt).toBe("2099-12-01T10:00:00.000Z");
  });

  it.each([
    ["an unknown token", "gho_other", {}, "GitHub does not know the token"],
    ["a token that may not read its account", TOKEN, { trouble: { status: 403 } }, "does not let the token read"],
    [
      "the rate limit",
      TOKEN,
      { trouble: { status: 403, headers: { "x-ratelimit-remaining": "0" } } },
      "may try again: GitHub: its rate limit is reached",
    ],
    ["the second rate limit", TOKEN, { trouble: { status: 429 } }, "may try again: GitHub: its rate limit is reached"],
    ["a wrong address", TOKEN, { trouble: { status: 404 } }, "may try again: GitHub: http.*answers with status 404"],
    [
      "a failure of GitHub",
      TOKEN,
      { trouble: { status: 502 } },
      "may try again: GitHub: http.*answers with status 502",
    ],
    ["a redirect", TOKEN, { trouble: { status: 301 } }, "may try again: GitHub: http.*answers with status 301"],
    ["a bot", TOKEN, { account: { login: "acme[bot]" } }, 'the login "acme\\[bot\\]" contains "\\["'],
    ["an account without a login", TOKEN, { account: { login: 5 } }, "it names no account"],
    ["no token", `${TOKEN} x`, {}, "This is not a GitHub token"],
  ])(
    "a GitHub token is refused with the reason: %s",
    async (_, token, { trouble, account }: { trouble?: { status: number }; account?: { login: unknown } }, reason) => {
      github.trouble = trouble;
      if (account !== undefined) github.accounts.set(TOKEN, account);
      const answer = await signOn().identify(token);
      const isUnchecked = /^may try again|names no account/.test(reason) ? { isUnchecked: true } : {};
      expect(answer).toEqual({ refused: expect.stringMatching(reason), ...isUnchecked });
      expect(JSON.stringify(answer)).not.toContain("canary");
    },
  );

  it("a token is checked again at once after a failed request, and only after 30 s if GitHub refused it", async () => {
    github.trouble = { status: 503, times: 1 };
    const sign = signOn();
    await identityOf(sign);
    expect(users()).toBe(2);
    for (let at = 0; at < 20; at++) await sign.identify("gho_wrong");
    expect(users()).toBe(3);
    github.accounts.set("gho_wrong", { login: "bob" });
    clock.ms += 31_000;
    expect((await identityOf(sign, "gho_wrong")).user).toBe("bob");
  });

  it("a checked GitHub token is accepted for an hour if GitHub stops answering, and then refused", async () => {
    const sign = signOn();
    const alice = await identityOf(sign);
    github.trouble = { status: 500 };
    clock.ms += 50 * MINUTE_MS;
    expect((await identityOf(sign)).user).toBe("Alice");
    expect(sign.isStillGood(alice)).toBe(true);
    clock.ms += 20 * MINUTE_MS;
    expect(await sign.identify(TOKEN)).toMatchObject({ refused: expect.stringContaining("may try again") });
    expect(sign.isStillGood(alice)).toBe(false);
  });

  it.each([
    { status: 403, message: "Maximum number of login attempts exceeded. Please try again later." },
    { status: 403, message: "You have exceeded a secondary rate limit." },
    { status: 429 },
  ])(
    "a checked GitHub token is accepted for an hour if GitHub refuses all requests because of a rate limit: %o",
    async (trouble) => {
      const sign = signOn();
      const alice = await identityOf(sign);
      github.trouble = trouble;
      clock.ms += 50 * MINUTE_MS;
      expect((await identityOf(sign)).user).toBe("Alice");
      expect(sign.isStillGood(alice)).toBe(true);
    },
  );

  it("a checked GitHub token stays known, however many wrong tokens strangers present", async () => {
    const sign = signOn();
    const alice = await identityOf(sign);
    const unknown = { status: 401, headers: new Headers(), body: null } as Response;
    vi.spyOn(globalThis, "fetch").mockResolvedValue(unknown);
    for (let at = 0; at < 10_001; at++) await sign.identify(`gho_wrong${at}`);
    vi.restoreAllMocks();
    github.trouble = { status: 503 };
    clock.ms += 10 * MINUTE_MS;
    expect((await identityOf(sign)).user).toBe("Alice");
    expect(sign.isStillGood(alice)).toBe(true);
  });

  it("if strangers' tokens use up all checks, a known GitHub token is accepted, and a new one waits", async () => {
    const sign = signOn();
    const alice = await identityOf(sign);
    github.accounts.set("gho_bob", { login: "bob" });
    clock.ms += 10 * MINUTE_MS;
    const { fetch } = globalThis;
    const free: (() => void)[] = [];
    vi.spyOn(globalThis, "fetch").mockImplementation(async (...request) => {
      if (!JSON.stringify(request).includes("gho_wrong")) return await fetch(...request);
      return await new Promise<Response>((resolve) => {
        free.push(() => resolve(new Response("{}", { status: 401 })));
      });
    });
    const strangers = Array.from({ length: 64 }, async (_, at) => await sign.identify(`gho_wrong${at}`));
    expect((await identityOf(sign)).user).toBe("Alice");
    expect(sign.isStillGood(alice)).toBe(true);
    const bob = identityOf(sign, "gho_bob");
    await eventually("the checks", () => free.length === 64);
    for (const answer of free) answer();
    expect((await bob).user).toBe("bob");
    await Promise.all(strangers);
  });

  it("an identity becomes invalid minutes after GitHub revokes its token or names another account", async () => {
    const sign = signOn();
    const alice = await identityOf(sign);
    github.accounts.delete(TOKEN);
    expect(sign.isStillGood(alice)).toBe(true);
    clock.ms += 6 * MINUTE_MS;
    await eventually("the end", () => !sign.isStillGood(alice));
    github.accounts.set(TOKEN, { login: "mallory" });
    clock.ms += MINUTE_MS;
    await identityOf(sign);
    expect(sign.isStillGood(alice)).toBe(false);
  });

  it("a GitHub token is checked again at once after a turn with it was refused", async () => {
    const sign = signOn();
    const alice = await identityOf(sign);
    sign.recheck(alice);
    expect(sign.isStillGood(alice)).toBe(true);
    await eventually("the second check", () => users() === 2);
    github.accounts.delete(TOKEN);
    await identityOf(sign);
    sign.recheck(alice);
    await eventually("the end", () => !sign.isStillGood(alice));
  });

  it("a GitHub token is checked soon, however many made-up tokens a stranger presents at the same time", async () => {
    const sign = signOn();
    let answer: (() => void) | undefined;
    github.held = new Promise<void>((resolve) => {
      answer = resolve;
    });
    const made = Array.from({ length: 300 }, async (_, at) => await sign.identify(`gho_made${at}`, "203.0.113.9"));
    const alice = sign.identify(TOKEN, "198.51.100.7");
    await eventually("the first questions", () => users() === 64);
    answer?.();
    expect(await alice).toMatchObject({ user: "Alice" });
    expect((await Promise.all(made)).every((answer) => "refused" in answer)).toBe(true);
    expect(github.asked.findIndex(({ token }) => token === TOKEN)).toBeLessThan(70);
  });

  it("a GitHub token is accepted only from active members of the configured organizations", async () => {
    const set = (memberships: Record<string, string>, readsMemberships = true) =>
      github.accounts.set(TOKEN, { login: "Alice", memberships, readsMemberships });
    const organizations = ["acme", "umbrella"];
    set({ acme: "active", other: "active" });
    expect((await identityOf(signOn(organizations))).groups).toEqual(["acme"]);
    set({ umbrella: "active" }, false);
    expect((await identityOf(signOn(organizations))).groups).toEqual(["umbrella"]);
    for (const memberships of [{}, { acme: "pending" }, { other: "active" }]) {
      set(memberships);
      expect(await signOn(organizations).identify(TOKEN)).toEqual({
        refused: "The GitHub token is refused: Alice is not an active member of acme or umbrella.",
      });
    }
  });
});
