import { createSign, generateKeyPairSync } from "node:crypto";
import type { JWK } from "jose";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Config, IssuerConfig } from "../../src/config/schema.js";
import { Refused } from "../../src/identity/claims.js";
import { JwtSignOn } from "../../src/identity/jwt.js";
import type { Store } from "../../src/store/store.js";
import { eventually } from "../fixtures/eventually.js";
import { Issuer } from "../fixtures/identity/issuer.js";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

let issuer: Issuer;
let clock: { ms: number };
beforeEach(async () => {
  issuer = await Issuer.open();
  clock = { ms: 0 };
  const { now } = Date;
  vi.spyOn(Date, "now").mockImplementation(() => now() + clock.ms);
});
afterEach(async () => {
  vi.restoreAllMocks();
  await issuer[Symbol.asyncDispose]();
});

function verifier(config: Partial<IssuerConfig> = {}): JwtSignOn {
  const all: IssuerConfig = {
    issuer: issuer.url,
    audience: "copilotfleet",
    jwks: null,
    algorithms: ["RS256", "ES256", "EdDSA"],
    user: "sub",
    groups: "groups",
    scopes: "scope",
    claims: {},
    clockSkewMs: 30_000,
    ...config,
  };
  const limits = { groups: {} };
  // Verifying a token does not use the store.
  return new JwtSignOn({ store: {} as Store, config: { identity: { jwt: [all] } as Config["identity"], limits } });
}

describe("the keys of an issuer", () => {
  it("an issuer's keys are fetched once for many tokens that arrive together", async () => {
    const checked = verifier();
    const token = await issuer.token();
    const found = await Promise.all(Array.from({ length: 50 }, async () => await checked.verify(token)));
    expect(found.every(({ user }) => user === "alice")).toBe(true);
    expect(issuer.fetches).toBe(1);
  });

  it("an issuer's keys are fetched again when a token names an unknown key, and replace the old keys", async () => {
    const checked = verifier();
    const old = await issuer.token();
    await checked.verify(old);
    await issuer.rotate();
    clock.ms += MINUTE_MS;
    await expect(checked.verify(await issuer.token())).resolves.toMatchObject({ user: "alice" });
    await expect(checked.verify(old)).rejects.toThrow("has no key with the token's key id");
    expect(issuer.fetches).toBe(2);
  });

  it("an issuer's keys are fetched at most every 30 s, however many key ids strangers make up", async () => {
    const checked = verifier();
    await checked.verify(await issuer.token());
    clock.ms += MINUTE_MS;
    for (let at = 0; at < 100; at++) {
      const made = await issuer.token({}, { kid: `made-up-${at}` });
      await expect(checked.verify(made)).rejects.toThrow("has no key with the token's key id");
      clock.ms += 500;
    }
    expect(issuer.fetches).toBe(3);
  });

  it("an issuer's new key is accepted after at most 30 s, even while strangers make up key ids", async () => {
    const checked = verifier();
    await checked.verify(await issuer.token());
    clock.ms += MINUTE_MS;
    const made = await issuer.token({}, { kid: "made-up" });
    await expect(checked.verify(made)).rejects.toThrow("has no key");
    await issuer.rotate();
    const token = await issuer.token();
    for (let at = 0; at < 30; at++) {
      await expect(checked.verify(at % 2 === 0 ? made : token)).rejects.toThrow("has no key");
      clock.ms += 1_000;
    }
    await expect(checked.verify(token)).resolves.toMatchObject({ user: "alice" });
    expect(issuer.fetches).toBe(3);
  });

  it("an issuer's keys are used for one day after the last fetch that succeeded", async () => {
    const checked = verifier();
    const token = await issuer.token({ exp: Math.floor(Date.now() / 1000) + 48 * 3600 });
    await checked.verify(token);
    for (const mode of ["down", "redirect", "huge", "nonsense"] as const) {
      issuer.mode = mode;
      clock.ms += 5 * HOUR_MS;
      await expect(checked.verify(token)).resolves.toMatchObject({ user: "alice" });
    }
    expect(issuer.fetches).toBe(5);
    clock.ms += 4 * HOUR_MS + 1;
    await expect(checked.verify(token)).rejects.toThrow("no keys of");
    issuer.mode = "good";
    clock.ms += MINUTE_MS;
    await expect(checked.verify(token)).resolves.toMatchObject({ user: "alice" });
  });

  it("tokens are verified without a long wait while the issuer accepts connections but does not answer", async () => {
    const checked = verifier();
    const token = await issuer.token({ exp: Math.floor(Date.now() / 1000) + 3 * 3600 });
    await checked.verify(token);
    issuer.mode = "silent";
    clock.ms += 2 * HOUR_MS;
    await expect(checked.verify(token)).resolves.toMatchObject({ user: "alice" });
    // The attempt to fetch newer keys has not ended yet. It takes 5 s.
    expect([issuer.fetches, checked.takeWarnings()]).toEqual([2, []]);
  });

  it("an issuer on another machine cannot make the fleet fetch keys from this machine", async () => {
    const elsewhere = "https://login.example";
    const described = { issuer: elsewhere, jwks_uri: `${issuer.url}/keys` };
    const { fetch } = globalThis;
    vi.spyOn(globalThis, "fetch").mockImplementation(async (...[url, options]) =>
      String(url).startsWith(elsewhere) ? new Response(JSON.stringify(described)) : await fetch(url, options),
    );
    const token = await issuer.token({ iss: elsewhere });
    const checked = verifier({ issuer: elsewhere }).verify(token);
    await expect(checked).rejects.toThrow("its description names no https:// address of keys");
    expect(issuer.fetches).toBe(0);
  });

  it("an issuer's keys are fetched again in the background after five minutes", async () => {
    const checked = verifier();
    const token = await issuer.token();
    await checked.verify(token);
    await issuer.rotate();
    clock.ms += 6 * MINUTE_MS;
    await checked.verify(token);
    const refused = async () =>
      await checked.verify(token).then(
        () => false,
        ({ message }: Error) => message,
      );
    expect(await eventually("the new keys", refused)).toContain("has no key with the token's key id");
    expect(issuer.fetches).toBe(2);
  });

  it("all tokens of an issuer whose keys could never be fetched are refused, with the reason", async () => {
    const reasons = {
      down: "answers with status 503",
      redirect: "it redirects to another address",
      huge: "its answer has more than 524288 bytes",
      nonsense: "does not answer with a JSON object",
      silent: "it did not answer within 5 s",
    };
    for (const [mode, reason] of Object.entries(reasons)) {
      issuer.mode = mode as Issuer["mode"];
      const checked = verifier();
      await expect(checked.verify(await issuer.token())).rejects.toThrow(reason);
      expect(checked.takeWarnings()).toEqual([expect.stringContaining(reason)]);
      expect(checked.takeWarnings()).toEqual([]);
    }
    issuer.mode = "good";
    issuer.named = "http://127.0.0.1:1";
    await expect(verifier().verify(await issuer.token())).rejects.toThrow("its description names another issuer");
    const gone = await Issuer.open();
    await gone[Symbol.asyncDispose]();
    const alone = verifier({ jwks: `${gone.url}/keys` });
    await expect(alone.verify(await issuer.token())).rejects.toThrow("it cannot be reached: ECONNREFUSED");
  });

  it("a token that names a damaged or too short key of its issuer is refused, with the reason", async () => {
    const short = generateKeyPairSync("rsa", { modulusLength: 1024 });
    issuer.publish({ ...short.publicKey.export({ format: "jwk" }), kid: "short" } as JWK);
    issuer.publish({ kty: "EC", crv: "P-256", x: "AAAA", y: "AAAA", kid: "damaged" });
    issuer.publish({ kty: "OKP", crv: "Ed25519", kid: "empty" });
    const partOf = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const claims = { iss: issuer.url, aud: "copilotfleet", sub: "alice", exp: Math.floor(Date.now() / 1000) + 600 };
    for (const [kid, alg] of [
      ["short", "RS256"],
      ["damaged", "ES256"],
      ["empty", "EdDSA"],
    ]) {
      const signed = `${partOf({ alg, kid })}.${partOf(claims)}`;
      const signature = createSign("RSA-SHA256").update(signed).sign(short.privateKey).toString("base64url");
      const checked = verifier().verify(`${signed}.${signature}`);
      await expect(checked, kid).rejects.toThrow(Refused);
      await expect(checked, kid).rejects.toThrow(`${issuer.url} has published a key that cannot be used`);
    }
    await expect(verifier().verify(await issuer.token())).resolves.toMatchObject({ user: "alice" });
  });

  it.each(["RS256", "EdDSA"])("JwtSignOn verifies tokens with the algorithm %s", async (alg) => {
    await issuer.rotate(alg);
    await expect(verifier().verify(await issuer.token({}, { alg }))).resolves.toMatchObject({ user: "alice" });
  });
});

describe("the claims of a token", () => {
  const check = async (claims: object, config: Partial<IssuerConfig> = {}) =>
    await verifier(config).verify(await issuer.token(claims));

  it("the claims of a token become the identity of the user", async () => {
    const exp = Math.floor(Date.now() / 1000) + 600;
    const claims = { sub: "alice", jti: "t-1", groups: ["dev", "ops"], scope: "openid copilotfleet:read admin", exp };
    expect(await check(claims)).toEqual({
      user: "alice",
      scopes: ["read", "admin"],
      groups: ["dev", "ops"],
      tokenId: "jwt:t-1",
      expiresAt: new Date(exp * 1000).toISOString(),
      via: "jwt",
    });
  });

  it("a token that was issued for more than 30 days is refused, even if fewer days are left", async () => {
    const now = Math.floor(Date.now() / 1000);
    const days = (count: number) => count * 24 * 3600;
    await expect(check({ iat: now - days(20), exp: now + days(11) })).rejects.toThrow("valid for more than 30 days");
    await expect(check({ iat: now + days(20), exp: now + days(31) })).rejects.toThrow("valid for more than 30 days");
    await expect(check({ iat: now - days(20), exp: now + days(9) })).resolves.toMatchObject({ user: "alice" });
  });

  it("the configuration names the claims that contain the user, the groups and the scopes", async () => {
    const claims = { "https://acme.example/roles": "dev", roles: ["use"], email: "a@b.example" };
    const config = { user: "email", groups: "https://acme.example/roles", scopes: "roles" };
    expect(await check(claims, config)).toMatchObject({ user: "a@b.example", groups: ["dev"], scopes: ["use"] });
    expect(await check({ scope: "openid" }, { scopes: null })).toMatchObject({ scopes: ["use"], groups: [] });
    await expect(check({}, { user: "__proto__" })).rejects.toThrow('the claim "__proto__" is missing');
  });

  it("a token without an id gets the same digest as its id for every spelling of its signature", async () => {
    const token = await issuer.token({ jti: undefined });
    // In base64url, the last four bits of a 64-byte signature have no meaning.
    const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const respelled = token.slice(0, -1) + digits[digits.indexOf(token.slice(-1)) ^ 1];
    const signatureOf = (text: string) => Buffer.from(text.split(".")[2] ?? "", "base64url");
    expect(signatureOf(respelled)).toEqual(signatureOf(token));
    expect((await verifier().verify(respelled)).tokenId).toBe((await verifier().verify(token)).tokenId);
  });

  it("a token without a usable id gets a digest as its id", async () => {
    const token = await issuer.token({ jti: undefined });
    const { tokenId } = await verifier().verify(token);
    expect(tokenId).toMatch(/^jwt:[0-9a-f]{32}$/);
    expect((await verifier().verify(await issuer.token({ jti: "a b\n" }))).tokenId).toMatch(/^jwt:[0-9a-f]{32}$/);
    expect((await verifier().verify(await issuer.token({ jti: 7 }))).tokenId).toMatch(/^jwt:[0-9a-f]{32}$/);
  });
});
