import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { GitHubAccounts } from "../fixtures/identity/github-accounts.js";
import { Issuer } from "../fixtures/identity/issuer.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "./harness.js";

describe("the API for users of an identity provider", () => {
  let issuer: Issuer;
  let github: GitHubAccounts;
  let at: TestApi;
  beforeAll(async () => {
    issuer = await Issuer.open();
    github = await GitHubAccounts.open();
    const jwt = [{ issuer: issuer.url, audience: "copilotfleet" }];
    at = await TestApi.open({ config: { identity: { jwt, github: { api: github.url } } } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    await issuer[Symbol.asyncDispose]();
    await github[Symbol.asyncDispose]();
  });

  it("the API accepts a JSON Web Token with its scopes and groups, and refuses an expired one", async () => {
    const token = await issuer.token({ sub: "zoë", scope: "openid read", groups: ["interns"] });
    const { json } = await at.ok("GET", "/v1/me", { token });
    expect(json).toMatchObject({ user: "zoë", via: "jwt", scopes: ["read"], groups: ["interns"] });
    expect((await at.ask("POST", "/v1/sessions", { token })).status).toBe(403);
    const old = await issuer.token({ sub: "zoë", exp: Math.floor(Date.now() / 1_000) - 3_600 });
    expect((await at.ask("GET", "/v1/me", { token: old })).json.code).toBe("FLEET_TOKEN_REFUSED");
    expect(at.signOns.map(({ via, result }) => `${via} ${result}`)).toEqual([
      "jwt accepted",
      "jwt accepted",
      "jwt refused",
    ]);
  });

  it("a user who signs on with a GitHub token can run a turn with the provider of the configuration", async () => {
    github.accounts.set("gho_ofAlice", { login: "alice" });
    const token = "gho_ofAlice";
    expect((await at.ok("GET", "/v1/me", { token })).json).toMatchObject({ user: "alice", via: "github" });
    const { id } = (await at.ok("POST", "/v1/sessions", { token })).json.session;
    const { json } = await at.ok("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "hello" } });
    expect(json.reply).toBe("[turn 1] hello");
    expect(JSON.stringify(at.events)).not.toContain("gho_");
  });

  it("a suspended user is refused with a token, a JSON Web Token, a cookie and during a turn, until user resume", async () => {
    const user = unused("zoë");
    const admin = await at.token("root", ["admin"]);
    const token = await at.token(user);
    const jwt = await issuer.token({ sub: user });
    const page = { "Sec-Fetch-Site": "same-origin" };
    const signIn = async () => await at.ask("POST", "/console/session", { body: { token }, headers: page });
    const { json, headers } = await signIn();
    const cookie = String(headers["set-cookie"]?.[0]).split(";")[0] ?? "";
    const asks = [
      async () => await at.ask("GET", "/v1/me", { token }),
      async () => await at.ask("GET", "/v1/me", { token: jwt }),
      async () =>
        await at.ask("GET", "/v1/me", { headers: { ...page, Cookie: cookie, "X-Copilotfleet-Console": json.key } }),
      signIn,
    ];
    for (const ask of asks) expect((await ask()).status).toBe(200);
    const { id } = (await at.ok("POST", "/v1/sessions", { token })).json.session;
    const body = { prompt: '!tool ask_user {"question": "Which colour?"}', interactive: true };
    const turn = at.ask("POST", `/v1/sessions/${id}/turns`, { token: jwt, body });
    const waiting = async () => (await at.ok("GET", `/v1/sessions/${id}/requests`, { token })).json.requests.length;
    await expect.poll(waiting).toBe(1);

    const path = `/v1/users/${encodeURIComponent(user)}`;
    const suspended = (await at.ok("POST", `${path}/suspend`, { token: admin, body: { reason: "lost laptop" } })).json;
    expect(suspended).toMatchObject({ user, reason: "lost laptop", known: true });
    for (const ask of asks) {
      const refused = await ask();
      expect(refused.json).toMatchObject({ status: 403, code: "FLEET_USER_SUSPENDED" });
      expect(refused.json.detail).toContain(suspended.since);
      expect(refused.text).not.toContain("laptop");
    }
    // The front door refuses the request, or the turn notices the suspension first and is aborted.
    const ended = await turn;
    expect(ended.status === 200 ? ended.json.outcome : ended.json.code).toBeOneOf(["aborted", "FLEET_USER_SUSPENDED"]);
    const { users } = (await at.ok("GET", "/v1/users", { token: admin })).json;
    const entry = { user, suspended: { since: suspended.since, reason: "lost laptop" } };
    expect(users).toContainEqual(expect.objectContaining(entry));

    await at.ok("POST", `${path}/resume`, { token: admin });
    for (const ask of asks) expect((await ask()).status).toBe(200);
    const again = await at.ask("POST", `${path}/resume`, { token: admin });
    expect(again.json).toMatchObject({ status: 404, code: "FLEET_NAME_NOT_FOUND" });
    await at.ok("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "hello" } });
  });

  it("the API asks GitHub about a token again after the model service refused it in a turn", async () => {
    const token = "gho_ofCarol";
    github.accounts.set(token, { login: "carol" });
    const { id } = (await at.ok("POST", "/v1/sessions", { token })).json.session;
    github.accounts.delete(token);
    expect((await at.ask("GET", "/v1/me", { token })).status).toBe(200);
    const { turn: usual } = at.fleet.sessions;
    const refused = async () =>
      await Promise.reject(new FleetError("FLEET_CREDENTIAL_REFUSED", "The model service refuses the credential."));
    Object.defineProperty(at.fleet.sessions, "turn", { value: refused, configurable: true });
    const turn = await at.ask("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "hello" } });
    Object.defineProperty(at.fleet.sessions, "turn", { value: usual, configurable: true });
    expect(turn.json).toMatchObject({ status: 502, code: "FLEET_CREDENTIAL_REFUSED" });
    expect((await at.ask("GET", "/v1/me", { token })).status).toBe(401);
  });
});
