import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { SignOn } from "../../src/identity/sign-on.js";
import {
  isRevoked,
  issueToken,
  isTokenGood,
  listTokens,
  revokeTokens,
  rotateToken,
  sweepTokens,
  verifyToken,
} from "../../src/identity/tokens.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { TestFleet, testFleet } from "../fixtures/commands/cli.js";

let folder: string;
let store: Store;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "copilotfleet-tokens-"));
  store = openStore("file", join(folder, "state"));
});

afterEach(async () => {
  vi.useRealTimers();
  await store.close();
  await rm(folder, { recursive: true, force: true });
});

describe("the fleet, with a token,", () => {
  it("accepts a token for its user until the token is revoked", async () => {
    const issued = await issueToken(store, "alice", null);
    expect(issued).toEqual({
      token: expect.stringMatching(/^cft_[0-9a-f]{16}_[\w-]{43}$/),
      id: expect.any(String),
      user: "alice",
      expiresAt: null,
      scopes: ["use"],
      sessionId: null,
      label: null,
    });
    const holder = { tokenId: issued.id, user: "alice" };
    expect(await verifyToken(store, issued.token)).toEqual({
      ...holder,
      scopes: ["use"],
      groups: [],
      expiresAt: null,
      via: "token",
    });
    expect(await isTokenGood(store, holder)).toBe(true);
    expect(await revokeTokens(store, { ids: [issued.id] })).toEqual([issued.id]);
    expect(await verifyToken(store, issued.token)).toBeNull();
    expect(await isTokenGood(store, holder)).toBe(false);
  });

  it("remembers the revocation of a JSON Web Token for 30 days, and does not list that token", async () => {
    const ids = ["jwt:token-7", "jwt:a/b?c=d"];
    expect(await revokeTokens(store, { ids })).toEqual(ids);
    expect(await revokeTokens(store, { ids })).toEqual(ids);
    expect(await isRevoked(store, "jwt:token-7")).toBe(true);
    expect(await isRevoked(store, "jwt:token-8")).toBe(false);
    expect(await listTokens(store)).toEqual([]);
    for (const { id } of await store.tokens.list()) expect(await verifyToken(store, `cft_${id}_`)).toBeNull();
    await sweepTokens(store);
    expect(await store.tokens.list()).toHaveLength(2);
    vi.useFakeTimers({ now: Date.now() + 31 * 86_400_000, toFake: ["Date"] });
    await sweepTokens(store);
    expect(await store.tokens.list()).toEqual([]);
  });

  it("refuses a token that was changed in any way, and every value that is not a token", async () => {
    const { token, id } = await issueToken(store, "alice", null);
    const other = await issueToken(store, "bob", null);
    const secret = token.slice(token.lastIndexOf("_", 22) + 1);
    const wrong = [
      `${token.slice(0, -1)}${token.endsWith("A") ? "B" : "A"}`,
      `cft_${other.id}_${secret}`,
      `cft_${"0".repeat(16)}_${secret}`,
      token.slice(0, -1),
      `${token}A`,
      ` ${token}`,
      `${token}\n`,
      token.toUpperCase(),
      id,
      "",
    ];
    for (const value of [...wrong, undefined, null, 7, {}, [token], { token }]) {
      expect(await verifyToken(store, value), JSON.stringify(value)).toBeNull();
    }
    expect(await verifyToken(store, token)).not.toBeNull();
  });

  it("refuses a token from the time when it expires, and lists it as expired", async () => {
    const { token, expiresAt, id } = await issueToken(store, "alice", 60_000);
    expect(Date.parse(expiresAt ?? "") - Date.now()).toBeGreaterThan(55_000);
    expect(await verifyToken(store, token)).not.toBeNull();
    vi.useFakeTimers({ now: Date.parse(expiresAt ?? ""), toFake: ["Date"] });
    expect(await verifyToken(store, token)).toBeNull();
    expect(await isTokenGood(store, { tokenId: id, user: "alice" })).toBe(false);
    expect(await listTokens(store)).toMatchObject([{ id, expired: true }]);
  });

  it("gives a client its token's scopes and session, or the scope use if the token's record has no scopes", async () => {
    const narrow = await issueToken(store, "alice", null, { scopes: ["admin", "read", "odd"], sessionId: "s1" });
    expect(narrow).toMatchObject({ scopes: ["read", "admin"], sessionId: "s1" });
    expect(await verifyToken(store, narrow.token)).toMatchObject({ scopes: ["read", "admin"], sessionId: "s1" });
    const old = await issueToken(store, "alice", null);
    expect(await store.tokens.read(old.id)).not.toHaveProperty("scopes");
    expect(await verifyToken(store, old.token)).toMatchObject({ scopes: ["use"], sessionId: undefined });
    const odd = await issueToken(store, "alice", null, { scopes: ["odd"] });
    expect(await verifyToken(store, odd.token)).toMatchObject({ scopes: [] });
  });

  it("rotation keeps user, scopes, session, label and lifetime, and ends the old token after the overlap", async () => {
    const old = await issueToken(store, "alice", 7_200_000, { scopes: ["read"], sessionId: "s1", label: "CI" });
    const first = await rotateToken(store, old.id, 3_600_000);
    const same = { user: "alice", scopes: ["read"], sessionId: "s1", label: "CI" };
    expect(first).toMatchObject({ ...same, replaces: old.id });
    expect(await listTokens(store)).toMatchObject([same, same]);
    const inMs = (time: string | null) => Date.parse(time ?? "") - Date.now();
    expect(inMs(first.expiresAt)).toBeGreaterThan(7_000_000);
    expect(inMs(first.oldExpiresAt)).toBeLessThanOrEqual(3_600_000);
    for (const { token } of [old, first]) expect(await verifyToken(store, token)).not.toBeNull();
    // A second rotation neither lengthens the life of the old token nor shortens that of the new one.
    const second = await rotateToken(store, old.id, 86_400_000);
    expect(second.oldExpiresAt).toBe(first.oldExpiresAt);
    expect(inMs(second.expiresAt)).toBeGreaterThan(7_000_000);
    const short = await issueToken(store, "alice", 60_000);
    expect((await rotateToken(store, short.id, 3_600_000)).oldExpiresAt).toBe(short.expiresAt);
    const endless = await issueToken(store, "alice", null);
    const last = await rotateToken(store, endless.id, 0);
    expect(last.expiresAt).toBeNull();
    expect(await verifyToken(store, endless.token)).toBeNull();
    await expect(rotateToken(store, endless.id, 0)).rejects.toMatchObject({ code: "FLEET_NAME_NOT_FOUND", exit: 4 });
    await expect(rotateToken(store, "none", 0)).rejects.toMatchObject({ code: "FLEET_NAME_NOT_FOUND" });
  });

  it("lists when a client last signed on with a token, and records no use of a wrong token or of the fleet's own tokens", async () => {
    const { token, id } = await issueToken(store, "alice", null);
    const own = await issueToken(store, "alice", null, { passing: true });
    const identity = { tokenTtlMs: 1, jwt: [], github: { api: null, organizations: [] } };
    const signOn = new SignOn({ store, config: { identity, limits: { groups: {} } }, clock: performance });
    expect(await signOn.identify(`${token.slice(0, -1)}${token.endsWith("A") ? "B" : "A"}`)).toHaveProperty("refused");
    expect(await signOn.identify(own.token)).toMatchObject({ user: "alice" });
    expect(await store.tokens.lastUses([id, own.id])).toEqual([null, null]);
    expect(await signOn.identify(token)).toMatchObject({ user: "alice" });
    await expect.poll(async () => (await store.tokens.lastUses([id]))[0]).not.toBeNull();
    const used = (await listTokens(store)).find((each) => each.id === id)?.lastUsedAt;
    expect(Math.abs(Date.parse(used ?? "") - Date.now())).toBeLessThan(60_000);
  });

  it("writes neither a token nor its secret to the disk", async () => {
    const { token } = await issueToken(store, "alice", null);
    const names = await readdir(folder, { recursive: true, withFileTypes: true });
    const files = names.filter((entry) => entry.isFile());
    expect(files.length).toBeGreaterThan(0);
    for (const { parentPath, name } of files) {
      const text = await readFile(join(parentPath, name), "utf8");
      expect(text).not.toContain(token);
      expect(text).not.toContain(token.slice(-43));
    }
  });
});

describe("the token commands", () => {
  const fleet = testFleet();

  it("token issue, token list and token revoke work together, and the list shows no secret", async () => {
    // Use a separate fleet, so that a retry does not find the tokens of a failed attempt.
    const own = new TestFleet();
    onTestFinished(async () => await own.end());
    const flags = ["--user", "alice", "--ttl", "30d", "--label", "build server"];
    const issued = await own.json<{ token: string; id: string }>(["token", "issue", ...flags]);
    expect(issued).toEqual({
      token: expect.stringMatching(/^cft_/),
      id: expect.any(String),
      user: "alice",
      expiresAt: expect.any(String),
      scopes: ["use"],
      sessionId: null,
      label: "build server",
    });
    const plain = await own.ok(["token", "issue", "--user", "bob"]);
    expect(plain).toMatch(/^cft_[0-9a-f]{16}_[\w-]{43}\n$/);
    const { tokens } = await own.json<{ tokens: object[] }>(["token", "list", "--user", "alice"]);
    expect(tokens).toMatchObject([{ id: issued.id, user: "alice", label: "build server", expired: false }]);
    const shown = await own.ok(["token", "list"]);
    expect(shown).toMatch(/^TOKEN +USER +AGE +EXPIRES +SCOPES +LABEL\n/);
    expect(shown).toContain(" build server\n");
    const events = await own.ok(["events", "--type", "token.issued", "--json"]);
    expect(events).toContain(JSON.stringify(`token ${issued.id}, scopes use, label "build server"`));
    expect(shown).not.toContain(issued.token.slice(-43));
    const { code, stdout } = await own.run(["token", "revoke", issued.id, "gone", "--json"]);
    const outcome = { revoked: [issued.id], notFound: ["gone"], error: { code: "FLEET_NAME_NOT_FOUND" } };
    expect([code, JSON.parse(stdout)]).toMatchObject([4, outcome]);
    expect(await own.ok(["token", "revoke", "--user", "alice"])).toBe("Nothing to revoke.\n");
    await own.ok(["token", "revoke", "--user", "bob"]);
    expect(await own.json(["token", "list"])).toEqual({ tokens: [] });
  });

  it("token issue applies identity.tokenTtl by default, and warns of a token that never expires", async () => {
    const own = new TestFleet();
    onTestFinished(async () => await own.end());
    const usual = await own.json<{ expiresAt: string }>(["token", "issue", "--user", "alice"]);
    const days = (Date.parse(usual.expiresAt) - Date.now()) / 86_400_000;
    expect(days).toBeGreaterThan(89);
    expect(days).toBeLessThanOrEqual(90);
    const short = await own.json<{ expiresAt: string }>(["token", "issue", "--user", "alice"], {
      env: { COPILOTFLEET_IDENTITY_TOKEN_TTL: "1h" },
    });
    expect(Date.parse(short.expiresAt) - Date.now()).toBeLessThanOrEqual(3_600_000);
    const endless = await own.run(["token", "issue", "--user", "alice", "--ttl", "never", "--json"]);
    const { id, expiresAt } = JSON.parse(endless.stdout) as { id: string; expiresAt: null };
    expect(expiresAt).toBeNull();
    expect(endless.stderr).toBe(
      `Warning: Token ${id} never expires. Whoever steals it can use it until somebody runs: copilotfleet token revoke ${id}\n`,
    );
  });

  it("token issue accepts scopes, and a session that the user owns or is a member of", async () => {
    const own = new TestFleet();
    onTestFinished(async () => await own.end());
    await own.ok(["create", "--user", "alice", "--id", "hers"]);
    await own.ok(["create", "--user", "bob", "--id", "shared", "--collaborative", "--member", "alice"]);
    await own.ok(["create", "--user", "bob", "--id", "his"]);
    const issue = ["token", "issue", "--user", "alice"];
    const both = await own.json([...issue, "--scope", "admin", "--scope", "read", "--session", "hers"]);
    expect(both).toMatchObject({ scopes: ["read", "admin"], sessionId: "hers" });
    expect(await own.json([...issue, "--scope", "read,use", "--session", "shared"])).toMatchObject({
      scopes: ["use", "read"],
      sessionId: "shared",
    });
    expect((await own.refusal(4, [...issue, "--session", "his"])).code).toBe("FLEET_SESSION_NOT_FOUND");
    const { tokens } = await own.json<{ tokens: object[] }>(["token", "list", "--sort", "session"]);
    expect(tokens).toMatchObject([
      { scopes: ["read", "admin"], sessionId: "hers" },
      { scopes: ["use", "read"], sessionId: "shared" },
    ]);
  });

  it("token rotate replaces a token, with an overlap of a day by default", async () => {
    const own = new TestFleet();
    onTestFinished(async () => await own.end());
    const { id } = await own.json<{ id: string }>(["token", "issue", "--user", "alice", "--scope", "read"]);
    const rotated = await own.json<{ token: string; oldExpiresAt: string }>(["token", "rotate", id]);
    expect(rotated).toEqual({
      token: expect.stringMatching(/^cft_/),
      id: expect.any(String),
      user: "alice",
      expiresAt: expect.any(String),
      scopes: ["read"],
      sessionId: null,
      label: null,
      replaces: id,
      oldExpiresAt: expect.any(String),
    });
    const hours = (Date.parse(rotated.oldExpiresAt) - Date.now()) / 3_600_000;
    expect(hours).toBeGreaterThan(23);
    expect(hours).toBeLessThanOrEqual(24);
    expect(await own.ok(["token", "rotate", id, "--overlap", "0"])).toMatch(/^cft_[0-9a-f]{16}_[\w-]{43}\n$/);
    expect(await own.refusal(4, ["token", "rotate", id])).toMatchObject({
      code: "FLEET_NAME_NOT_FOUND",
      suggestions: expect.arrayContaining(["copilotfleet token list"]),
    });
    expect(await own.ok(["token", "list", "-o", "wide"])).toMatch(
      /^TOKEN .* SCOPES +LABEL +SESSION +LAST USE\n.* never\n/,
    );
  });

  it("the error of token revoke does not contain a token that was given in place of a token's id", async () => {
    const refused = await fleet.refusal(2, ["token", "revoke", "cft_0123_secretsecret"]);
    expect(JSON.stringify(refused)).not.toContain("secretsecret");
  });

  const secret = "canary".repeat(8).slice(0, 43);
  const token = `cft_0123456789abcdef_${secret}`;
  it.each([
    [2, ["token", "rotate", token]],
    [2, ["chat", "--to", token, "--token-env", "T"]],
    [2, ["proxy", "--to", `${token}:1`, "--token-env", token]],
    [4, ["token", "issue", "--user", "a", "--session", token]],
    [4, ["send", token, "hello", "--user", "a"]],
    [2, ["explain", `cfp_${secret}`]],
  ])("a command's error does not repeat a token given in the wrong place: exit code %i, %j", async (exit, args) => {
    expect(JSON.stringify(await fleet.refusal(exit, args))).not.toContain(secret);
  });
});
