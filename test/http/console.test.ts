import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TokenRecord } from "../../src/base/token.js";
import { issueCode, redeemCode } from "../../src/identity/tokens.js";
import type { Store } from "../../src/store/store.js";
import { type Ask, type Reply, TestApi } from "./harness.js";

let at: TestApi;

beforeAll(async () => {
  at = await TestApi.open();
});
afterAll(async () => await at[Symbol.asyncDispose]());

const FROM_PAGE = { "Sec-Fetch-Site": "same-origin" };
const codeOf = ({ status, json }: Reply) => `${status} ${json?.code}`;

interface SignedIn {
  cookie: string;
  key: string;
  reply: Reply;
}

async function signIn(body: object, headers: Ask["headers"] = FROM_PAGE): Promise<SignedIn> {
  const reply = await at.ask("POST", "/console/session", { body, headers: { ...headers } });
  const cookie = String(reply.headers["set-cookie"]?.[0] ?? "").split(";")[0] ?? "";
  return { cookie, key: reply.json.key, reply };
}

/** The headers that the console sends with a request. */
const by = ({ cookie, key }: SignedIn) => ({ ...FROM_PAGE, Cookie: cookie, "X-Copilotfleet-Console": key });
const me = async (headers: Ask["headers"]) => await at.ask("GET", "/v1/me", { headers: { ...headers } });

describe("the page of the console", () => {
  it("the console's page has a CSP that allows only the console's files, and Cache-Control: no-cache", async () => {
    const { status, headers, text } = await at.ask("GET", "/");
    expect(status).toBe(200);
    expect(headers).toMatchObject({
      "content-type": "text/html; charset=utf-8",
      "cache-control": "no-cache",
      "referrer-policy": "no-referrer",
      "x-content-type-options": "nosniff",
    });
    expect(String(headers["content-security-policy"]).split("; ")).toEqual([
      "default-src 'none'",
      "script-src 'self'",
      "style-src 'self'",
      "connect-src 'self'",
      "img-src 'self' data:",
      "frame-ancestors 'none'",
      "base-uri 'none'",
      "form-action 'none'",
      "require-trusted-types-for 'script'",
      "trusted-types dompurify",
    ]);
    expect(text).not.toMatch(/<script(?![^>]* src=)|<style| style=| on\w+=/);
  });

  it("the console's files have hashed names, may be cached for a year, and use brotli if accepted", async () => {
    const { text } = await at.ask("GET", "/");
    const files = [...text.matchAll(/"(\/console\/main-[A-Z0-9]{8}\.(?:js|css))"/g)].map(([, file = ""]) => file);
    expect(files).toHaveLength(2);
    for (const file of files) {
      const plain = await at.ask("GET", file);
      expect(plain.headers["cache-control"]).toBe("public, max-age=31536000, immutable");
      expect(plain.headers["content-encoding"]).toBeUndefined();
      expect(plain.headers.vary).toBe("Accept-Encoding, Origin");
      const response = await fetch(`${at.door.url}${file}`, { headers: { "Accept-Encoding": "br" } });
      expect(response.headers.get("Content-Encoding")).toBe("br");
      // `fetch` has already decompressed the body.
      expect(await response.text()).toBe(plain.text);
    }
  });

  it.each(["/console/nothing-12345678.js", "/console/..%2f..%2fpackage.json", "/console/index.html.br", "/console/"])(
    "a path that is not a file of the console gets 404: %s",
    async (path) => expect((await at.ask("GET", path)).status).toBe(404),
  );
});

describe("the sign-in", () => {
  it("the sign-in's cookie does not contain the token in plain text, and is HttpOnly and SameSite=Strict", async () => {
    const token = await at.token("alice", ["use"]);
    const { cookie, key, reply } = await signIn({ token });
    expect(reply.headers["set-cookie"]).toHaveLength(1);
    expect(reply.headers["set-cookie"]?.[0]).toMatch(
      /^copilotfleet-\d+=[\w-]{80,}; Max-Age=28800; Path=\/; HttpOnly; SameSite=Strict$/,
    );
    expect(cookie).not.toContain(token);
    expect(Buffer.from(cookie.split("=")[1] ?? "", "base64url").toString("latin1")).not.toContain(token.slice(4, 20));
    expect(reply.text).not.toContain(token);
    expect((await me(by({ cookie, key, reply }))).json).toMatchObject({ user: "alice", scopes: ["use"], via: "token" });
  });

  it("a browser that signs in with a token gets its scope, session and expiry, and no other access", async () => {
    await at.fleet.sessions.create({ user: "alice", sessionId: "only" });
    const { token } = await at.fleet.tokens.issue("alice", { ttl: "1h", scopes: ["read"], sessionId: "only" });
    const signedIn = await signIn({ token });
    expect(signedIn.reply.headers["set-cookie"]?.[0]).toMatch(/Max-Age=3(?:600|59\d);/);
    expect((await me(by(signedIn))).json).toMatchObject({ scopes: ["read"], sessionId: "only" });
    const refused = await at.ask("POST", "/v1/sessions", { headers: by(signedIn), body: {} });
    expect(codeOf(refused)).toBe("403 FLEET_SCOPE_MISSING");
  });

  it("the sign-in refuses a wrong token with the same error as the API, and reports the refusal", async () => {
    const { reply } = await signIn({ token: `cft_${"a".repeat(16)}_${"b".repeat(43)}` });
    expect(codeOf(reply)).toBe("401 FLEET_TOKEN_REFUSED");
    expect(reply.headers["set-cookie"]).toBeUndefined();
    expect(at.events.at(-1)).toMatchObject({ event: "token-refused" });
    expect(JSON.stringify(at.events)).not.toContain("b".repeat(43));
  });

  it.each([
    ["another site", { "Sec-Fetch-Site": "cross-site" }],
    ["a page of another port", { "Sec-Fetch-Site": "same-site" }],
    ["a page of another origin in a browser without Sec-Fetch-Site", { Origin: "http://127.0.0.1:1" }],
  ])("the sign-in refuses a request from %s", async (_, headers) => {
    const { reply } = await signIn({ token: await at.token("alice") }, headers);
    expect(codeOf(reply)).toBe("403 FLEET_METHOD_DENIED");
    expect(reply.headers["set-cookie"]).toBeUndefined();
  });

  it("the sign-in refuses a body that is too large, has both a token and a code, or is not JSON", async () => {
    expect(codeOf((await signIn({ token: "x".repeat(30_000) })).reply)).toBe("413 FLEET_CONTENT_TOO_LARGE");
    expect(codeOf((await signIn({ token: "x", code: "y" })).reply)).toBe("422 FLEET_USAGE_INVALID");
    const headers = { ...FROM_PAGE, "Content-Type": "application/x-www-form-urlencoded" };
    const reply = await at.ask("POST", "/console/session", { body: "token=x", headers });
    expect(codeOf(reply)).toBe("422 FLEET_USAGE_INVALID");
  });
});

describe("the cookie", () => {
  it.each([
    ["without the key", ({ cookie }: SignedIn) => ({ ...FROM_PAGE, Cookie: cookie })],
    ["with another key", (signedIn: SignedIn) => ({ ...by(signedIn), "X-Copilotfleet-Console": "A".repeat(43) })],
    ["with the key, from another site", (signedIn: SignedIn) => ({ ...by(signedIn), "Sec-Fetch-Site": "cross-site" })],
    ["with the key, from another port", (signedIn: SignedIn) => ({ ...by(signedIn), "Sec-Fetch-Site": "same-site" })],
    [
      "when it was changed",
      (signedIn: SignedIn) => ({ ...by(signedIn), Cookie: `${signedIn.cookie.slice(0, -3)}AAA` }),
    ],
    ["when the key is there alone", ({ key }: SignedIn) => ({ ...FROM_PAGE, "X-Copilotfleet-Console": key })],
  ])("the console's cookie is not a credential %s", async (_, headersOf) => {
    const signedIn = await signIn({ token: await at.token("alice") });
    expect((await me(by(signedIn))).status).toBe(200);
    expect(codeOf(await me(headersOf(signedIn)))).toBe("401 FLEET_TOKEN_REFUSED");
  });

  it("the console's cookie is refused after its token was revoked", async () => {
    const { id, token } = await at.fleet.tokens.issue("alice", { ttl: "1h", scopes: ["use"] });
    const signedIn = await signIn({ token });
    await at.fleet.tokens.revoke({ ids: [id] });
    expect(codeOf(await me(by(signedIn)))).toBe("401 FLEET_TOKEN_REFUSED");
  });

  it("the answer to a preflight request allows neither the console's key header nor credentials", async () => {
    const headers = { Origin: at.door.url, "Access-Control-Request-Headers": "x-copilotfleet-console" };
    const { headers: allowed } = await at.ask("OPTIONS", "/v1/me", { headers });
    expect(String(allowed["access-control-allow-headers"]).toLowerCase()).not.toContain("console");
    expect(allowed["access-control-allow-credentials"]).toBeUndefined();
  });

  it("behind an HTTPS proxy, the cookie has the prefix __Host- and the attribute Secure", async () => {
    await using own = await TestApi.open({ config: { http: { origins: ["https://fleet.example"] } } });
    const proxied = { ...FROM_PAGE, Host: "fleet.example", Origin: "https://fleet.example" };
    const body = { token: await own.token("alice") };
    const reply = await own.ask("POST", "/console/session", { body, headers: proxied });
    const cookie = reply.headers["set-cookie"]?.[0] ?? "";
    expect(cookie).toMatch(/^__Host-copilotfleet=[\w-]+; Max-Age=\d+; Path=\/; HttpOnly; Secure; SameSite=Strict$/);
    const headers = { ...FROM_PAGE, Host: "fleet.example", Cookie: cookie.split(";")[0] ?? "" };
    const asked = await own.ask("GET", "/v1/me", { headers: { ...headers, "X-Copilotfleet-Console": reply.json.key } });
    expect(asked.json).toMatchObject({ user: "alice" });
  });
});

describe("a one-time code", () => {
  it("the sign-in refuses a token in place of a one-time code, because links must not contain tokens", async () => {
    const token = await at.token("alice");
    expect(codeOf((await signIn({ code: token, user: "alice" })).reply)).toBe("401 FLEET_TOKEN_REFUSED");
    expect((await signIn({ token })).reply.status).toBe(200);
  });

  it("a one-time code signs in once, with its scopes, for eight hours or until the user signs out", async () => {
    const { token: code } = await at.fleet.tokens.issueCode("carol", { scopes: ["admin"] });
    expect(await at.fleet.tokens.list({ user: "carol" })).toEqual([]);
    const signedIn = await signIn({ code, user: "carol" });
    expect((await me(by(signedIn))).json).toMatchObject({ user: "carol", scopes: ["admin"] });
    const [token] = await at.fleet.tokens.list({ user: "carol" });
    const hours = (Date.parse(token?.expiresAt ?? "") - Date.parse(token?.createdAt ?? "")) / 3_600_000;
    expect(hours).toBe(8);
    expect(token?.label).toBe("console sign-in");
    expect(codeOf((await signIn({ code, user: "carol" })).reply)).toBe("401 FLEET_TOKEN_REFUSED");

    const { status, headers } = await at.ask("DELETE", "/console/session", { headers: by(signedIn) });
    expect(status).toBe(204);
    expect(headers["set-cookie"]?.[0]).toMatch(/^copilotfleet-\d+=; Max-Age=0; Path=\/; /);
    expect(await at.fleet.tokens.list({ user: "carol" })).toEqual([]);
    expect((await me(by(signedIn))).status).toBe(401);
  });

  it("a one-time code alone returns its user; a request that also names this user signs in", async () => {
    const { token: code } = await at.fleet.tokens.issueCode("frank");
    const shown = await signIn({ code });
    expect([shown.reply.status, shown.reply.json, shown.cookie]).toEqual([200, { user: "frank" }, ""]);
    expect(codeOf((await signIn({ code, user: "grace" })).reply)).toBe("401 FLEET_TOKEN_REFUSED");
    expect(await at.fleet.tokens.list({ user: "frank" })).toEqual([]);
    expect((await signIn({ code, user: "frank" })).reply.status).toBe(200);
    const [token] = await at.fleet.tokens.list({ user: "frank" });
    const issued = await at.fleet.events.list({ type: "token.issued", user: "frank" });
    expect(issued.map(({ actor, detail }) => [actor.via, actor.user, detail?.split(",")[0]])).toContainEqual([
      "http",
      "frank",
      `token ${token?.id}`,
    ]);
  });

  it("a one-time code is refused after all tokens of its user were revoked", async () => {
    const { token: code } = await at.fleet.tokens.issueCode("heidi");
    await at.fleet.tokens.revoke({ user: "heidi" });
    expect(codeOf((await signIn({ code, user: "heidi" })).reply)).toBe("401 FLEET_TOKEN_REFUSED");
    expect(await at.fleet.tokens.list({ user: "heidi" })).toEqual([]);
  });

  it("the API refuses a one-time code as a token, and the code can still sign in", async () => {
    const { token: code } = await at.fleet.tokens.issueCode("erin");
    expect((await at.ask("GET", "/v1/me", { token: code })).status).toBe(401);
    expect((await signIn({ code, user: "erin" })).reply.status).toBe(200);
  });

  it("a one-time code expires after five minutes", async () => {
    const records = new Map<string, TokenRecord>();
    let now = Date.now();
    const store = {
      now: async () => now,
      tokens: {
        create: async (record: TokenRecord) => void records.set(record.id, record),
        read: async (id: string) => records.get(id) ?? null,
        delete: async (id: string) => records.delete(id),
        noteEnd: async () => undefined,
      },
    } as unknown as Store;
    const [first, second] = [
      await issueCode(store, "frank", { scopes: ["use"] }),
      await issueCode(store, "frank", { scopes: ["use"] }),
    ];
    now += 5 * 60_000 - 1;
    expect(await redeemCode(store, first.token, "frank")).toMatchObject({ user: "frank", scopes: ["use"] });
    now += 1;
    expect(await redeemCode(store, second.token, "frank")).toBeNull();
  });
});

it("signing out does not revoke a token that the user entered, and also succeeds without a cookie", async () => {
  const { id, token } = await at.fleet.tokens.issue("gina", { scopes: ["use"] });
  const signedIn = await signIn({ token });
  expect((await at.ask("DELETE", "/console/session", { headers: by(signedIn) })).status).toBe(204);
  expect((await at.fleet.tokens.list({ user: "gina" })).map((each) => each.id)).toEqual([id]);
  expect((await at.ask("DELETE", "/console/session", { headers: FROM_PAGE })).status).toBe(204);
});
