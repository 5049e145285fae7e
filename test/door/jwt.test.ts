import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { generateKeyPair, SignJWT, UnsecuredJWT } from "jose";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { Issuer } from "../fixtures/identity/issuer.js";
import { DoorFleet } from "./harness.js";
import { RawClient, type RawMessage } from "./raw-client.js";

const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");

describe("the front door, for a user of an identity provider,", () => {
  let issuer: Issuer;
  let other: Issuer;
  let at: DoorFleet;
  beforeAll(async () => {
    issuer = await Issuer.open();
    other = await Issuer.open();
    const audience = "copilotfleet";
    const jwt = [
      { issuer: issuer.url, audience, claims: { org: "acme" } },
      { issuer: other.url, audience, jwks: `${other.url}/keys`, user: "login", scopes: null },
    ];
    at = await DoorFleet.open({ config: { identity: { jwt } } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    await issuer[Symbol.asyncDispose]();
    await other[Symbol.asyncDispose]();
  });

  const token = async (claims: object = {}, header: object = {}) =>
    await issuer.token({ org: "acme", ...claims }, header);

  it("admits a client under the user id in its token, without changing any character of the id", async () => {
    for (const user of ["alice", "Alice", "zoë", "a.b+c@example.com", "李雷"]) {
      const client = await RawClient.as(at.url, await token({ sub: user }));
      expect(await client.request("ping", { message: "x" })).toMatchObject({ result: { message: "pong: x" } });
      expect(at.events).toContainEqual(expect.objectContaining({ event: "connected", user }));
      client.socket.destroy();
    }
    const client = await RawClient.as(at.url, await other.token({ login: "bob", sub: "nobody", scope: "openid" }));
    expect(at.events).toContainEqual(expect.objectContaining({ event: "connected", user: "bob" }));
    client.socket.destroy();
  });

  it("lets a user with a JSON Web Token run a turn, and records the user as the session's owner", async () => {
    const client = await at.connect(at.url, await token({ sub: "carol" }));
    const session = await client.createSession({ onPermissionRequest: () => ({ kind: "reject" as const }) });
    expect((await session.sendAndWait({ prompt: "hello" }))?.data.content).toContain("hello");
    expect((await at.fleet.sessions.list()).find(({ id }) => id === session.sessionId)).toMatchObject({
      owner: "carol",
    });
  });

  it("refuses each hostile token with the same answer, and reports the reason in an event", async () => {
    const now = Math.floor(Date.now() / 1000);
    const stranger = await generateKeyPair("ES256", { extractable: true });
    const rsa = await generateKeyPair("RS256", { extractable: true });
    const publicKey = Buffer.from(JSON.stringify(issuer.jwks.keys[0]));
    const claims = { iss: issuer.url, aud: "copilotfleet", sub: "alice", org: "acme", exp: now + 600 };
    const forged = async (header: object) => await issuer.token({ org: "acme" }, header, stranger.privateKey);
    const good = await token();
    const [head = "", body = "", signature = ""] = good.split(".");
    const twice = (names: string) =>
      `{"iss":"${issuer.url}","aud":"copilotfleet","org":"acme","exp":${now + 600},${names}}`;
    const user = async (sub: unknown) => await token({ sub });
    const hostile: [string, string | Promise<string>, RegExp][] = [
      ["the algorithm none", new UnsecuredJWT(claims).encode(), /its algorithm is "none"/],
      ["the algorithm NONE", `${encode({ alg: "NONE" })}.${encode(claims)}.`, /its algorithm is "NONE"/],
      [
        "HS256 with the public key",
        new SignJWT(claims).setProtectedHeader({ alg: "HS256" }).sign(publicKey),
        /its algorithm is "HS256"/,
      ],
      [
        "an algorithm that is not configured",
        `${encode({ alg: "RS512" })}.${encode(claims)}.AAAA`,
        /its algorithm is "RS512"/,
      ],
      [
        "an algorithm other than that of the key",
        new SignJWT(claims).setProtectedHeader({ alg: "RS256" }).sign(rsa.privateKey),
        /has no key with the token's key id and algorithm/,
      ],
      ["no algorithm", `${encode({ typ: "JWT" })}.${body}.${signature}`, /its algorithm is/],
      ["another audience", token({ aud: "other" }), /not for the audience "copilotfleet"/],
      ["a list of other audiences", token({ aud: ["a", "b"] }), /not for the audience/],
      ["no audience", token({ aud: undefined }), /not for the audience/],
      ["an unknown issuer", token({ iss: "https://evil.example" }), /its issuer "https:\/\/evil.example" is not in/],
      ["the issuer with a slash", token({ iss: `${issuer.url}/` }), /its issuer .* is not in identity.jwt/],
      ["no issuer", token({ iss: undefined }), /its issuer is missing/],
      ["a list of issuers", token({ iss: [issuer.url] }), /its issuer is missing/],
      ["the other issuer's name", token({ iss: other.url }), /has no key with the token's key id/],
      ["expired", token({ exp: now - 1 }), /expired/],
      ["expired long ago", token({ exp: now - 86_400 }), /expired/],
      ["no end", token({ exp: undefined }), /"exp" is missing or wrong/],
      ["an end that is a text", token({ exp: String(now + 600) }), /"exp" is missing or wrong/],
      ["an end in a thousand years", token({ exp: now + 31_536_000_000 }), /valid for more than 30 days/],
      ["not yet valid", token({ nbf: now + 600 }), /not valid yet/],
      ["a key id that is a path", forged({ kid: "../../../../dev/null" }), /has no key with the token's key id/],
      ["a key id that is a URL", forged({ kid: "http://127.0.0.1:1/key" }), /has no key with the token's key id/],
      ["a key id that is an object", forged({ kid: { a: 1 } }), /the id of its key is not a short text/],
      ["a very long key id", forged({ kid: "x".repeat(5_000) }), /the id of its key is not a short text/],
      ["jku", forged({ jku: `${other.url}/keys` }), /brings a key of its own \(jku\)/],
      ["x5u", forged({ x5u: `${other.url}/keys` }), /brings a key of its own \(x5u\)/],
      ["an embedded key", forged({ jwk: issuer.jwks.keys[0] }), /brings a key of its own \(jwk\)/],
      [
        "crit",
        issuer.tokenOf(JSON.stringify({ ...JSON.parse(issuer.header), crit: ["b64"], b64: true }), twice('"sub":"a"')),
        /requires an extension/,
      ],
      ["another type of token", token({}, { typ: "logout+jwt" }), /its type is "logout\+jwt"/],
      ["another key", forged({}), /its signature was not made by/],
      [
        "a changed claim",
        `${head}.${encode({ ...claims, sub: "root" })}.${signature}`,
        /its signature was not made by/,
      ],
      ["no signature", `${head}.${body}.`, /its signature was not made by|cannot be verified/],
      ["huge", token({ x: "x".repeat(13_000) }), /has \d+ bytes, which is more than 16384/],
      [
        "a claim twice",
        issuer.tokenOf(issuer.header, twice('"sub":"alice","sub":"root"')),
        /its content has a name twice/,
      ],
      [
        "a claim twice, with an escape",
        issuer.tokenOf(issuer.header, twice('"sub":"alice","s\\u0075b":"root"')),
        /a name twice/,
      ],
      [
        "a header twice",
        issuer.tokenOf('{"alg":"none","alg":"ES256"}', twice('"sub":"alice"')),
        /its header has a name twice/,
      ],
      ["content that is not JSON", issuer.tokenOf(issuer.header, "alice"), /its content is not a JSON object/],
      ["content that is a list", issuer.tokenOf(issuer.header, "[]"), /its content is not a JSON object/],
      [
        "content that is not UTF-8",
        `${head}.${Buffer.from([0x7b, 0xff, 0x7d]).toString("base64url")}.${signature}`,
        /its content is not a JSON/,
      ],
      ["five parts", `${good}.${body}.${signature}`, /three parts in base64url/],
      ["white space", `${good} `, /three parts in base64url/],
      ["a required claim with another text", token({ org: "Acme" }), /the claim "org" is "Acme", and not "acme"/],
      ["a required claim that is missing", token({ org: undefined }), /the claim "org" is missing, and not "acme"/],
      ["no user", user(undefined), /the claim "sub" is missing/],
      ["the user __proto__", user("__proto__"), /"__proto__", which is a reserved word/],
      ["the user ..", user(".."), /"\.\.", which stands for a folder/],
      ["a user with a path", user("a/../b"), /contains "\/"/],
      ["a user with NUL", user("alice\0"), /contains "\\u\{0\}"/],
      ["a user with a line break", user("alice\n"), /contains "\\u\{a\}"/],
      ["a user with a change of direction", user("\u202ealice"), /contains "\\u\{202e\}"/],
      ["a user with a zero-width character", user("ali\u200bce"), /contains "\\u\{200b\}"/],
      ["a user with half a character", user("\ud800"), /is not the id of a user/],
      ["a user that is not in normal form C", user("zoe\u0308"), /not in Unicode normal form C/],
      ["a user with a space before it", user(" alice"), /contains a space/],
      ["a user with a space after it", user("alice "), /contains a space/],
      ["an empty user", user(""), /which is empty/],
      ["a long user", user("a".repeat(129)), /which has 129 bytes/],
      ["a user that is a number", user(42), /the claim "sub" is a value of type number/],
      ["a user that is a list", user(["alice"]), /the claim "sub" is a list/],
      ["a user that is an object", user({ toString: "alice" }), /a value of type object/],
      ["no scope of the fleet", token({ scope: "openid profile" }), /names none of use, read, admin/],
      ["groups that are an object", token({ groups: { admin: true } }), /not a list of at most 1000 texts/],
    ];
    expect(hostile.length).toBeGreaterThan(30);
    const usual = await refusalOf(`cft_${"0".repeat(16)}_${"A".repeat(43)}`);
    expect(usual.answer).toEqual({ code: -32002, message: "AUTHENTICATION_FAILED" });
    for (const [name, given, reason] of hostile) {
      const hostileToken = await given;
      const { answer, events } = await refusalOf(hostileToken);
      expect(answer, name).toEqual(usual.answer);
      expect(events, name).toEqual([
        {
          event: "token-refused",
          address: "127.0.0.1",
          code: "FLEET_TOKEN_REFUSED",
          detail: expect.stringMatching(reason),
        },
        { event: "closed", address: "127.0.0.1" },
      ]);
      for (const part of hostileToken.split(".").filter((text) => text.length > 20))
        expect(JSON.stringify(at.events), name).not.toContain(part);
    }
    // The attempts did not make the fleet ask the issuer again and again.
    expect(issuer.fetches).toBeLessThan(4);
  });

  async function refusalOf(given: string): Promise<{ answer: RawMessage["error"]; events: object[] }> {
    const before = at.events.length;
    const client = await RawClient.open(at.url);
    const { error } = await client.request("connect", { token: given });
    await client.end();
    const events = await eventually("the event of the end", () => {
      const found = at.events.slice(before).filter(({ address }) => address !== "");
      return found.some(({ event }) => event === "closed") ? found : undefined;
    });
    expect(client.received).toHaveLength(1);
    return { answer: error, events };
  }

  it("closes a client's connection when its JSON Web Token expires", async () => {
    await at.fleet.servers.spawn("dave"); // so that the sign-on does not wait for the start of the server
    const client = await RawClient.as(at.url, await token({ sub: "dave", exp: Math.floor(Date.now() / 1000) + 5 }));
    await client.end();
    // The door's check of all tokens may find the expired token before the connection's own timer does.
    const event = { event: "token-refused", address: "127.0.0.1", user: "dave" };
    expect(at.events).toContainEqual(expect.objectContaining(event));
  });

  it("closes a client's connection when its token is revoked by id, and does not admit the token again", async () => {
    const revoked = await token({ sub: "erin", jti: "token-7" });
    const client = await RawClient.as(at.url, revoked);
    const connected = { event: "connected", address: "127.0.0.1", user: "erin", detail: "jwt:token-7" };
    expect(at.events).toContainEqual(connected);
    const stays = await RawClient.as(at.url, await token({ sub: "erin", jti: "token-8" }));
    await at.fleet.tokens.revoke({ ids: ["jwt:token-7"] });
    await client.end();
    const { events } = await refusalOf(revoked);
    expect(events[0]).toMatchObject({ detail: "The token jwt:token-7 of erin was revoked." });
    expect(await stays.request("ping", { message: "x" })).toMatchObject({ result: {} });
    stays.socket.destroy();
    expect(await at.fleet.tokens.list()).toEqual([]);
  });
});

describe("docs/identity.md", () => {
  it.each([
    ["https://login.example", { email: "alice@login.example" }, "alice@login.example"],
    ["https://token.actions.githubusercontent.com", { repository_owner: "acme", actor: "octocat" }, "octocat"],
  ])("the configuration for %s in docs/identity.md admits its user and no other", async (address, claims, user) => {
    await using issuer = await Issuer.open();
    const page = readFileSync(new URL("../../docs/identity.md", import.meta.url), "utf8");
    const block = [...page.matchAll(/```json\n(.*?)```/gs)]
      .map(([, text = ""]) => text)
      .find((text) => text.includes(address));
    const config = JSON.parse((block ?? "").replaceAll(address, issuer.url)) as object;
    await using at = await DoorFleet.open({ config });
    await RawClient.as(at.url, await issuer.token(claims));
    expect(at.events).toContainEqual(expect.objectContaining({ event: "connected", user }));
    await expect(RawClient.as(at.url, await issuer.token({ sub: "mallory" }))).rejects.toThrow("AUTHENTICATION_FAILED");
  });
});

describe("the front door, with the keys of an issuer,", () => {
  it("keeps admitting tokens of known keys while the issuer's key file is missing, and warns once", async () => {
    await using issuer = await Issuer.open();
    const folder = await mkdtemp(join(tmpdir(), "copilotfleet-keys-"));
    onTestFinished(async () => await rm(folder, { recursive: true }));
    const jwks = join(folder, "keys.json");
    await writeFile(jwks, JSON.stringify(issuer.jwks));
    await using at = await DoorFleet.open({
      config: { identity: { jwt: [{ issuer: issuer.url, audience: "copilotfleet", jwks }] } },
    });
    await RawClient.as(at.url, await issuer.token());
    await rm(jwks);
    await RawClient.as(at.url, await issuer.token());
    const warned = () => at.events.filter(({ detail }) => detail?.includes("cannot be read"));
    await eventually("the warning", () => warned().length > 0);
    expect(warned()).toEqual([
      expect.objectContaining({ event: "failed", detail: expect.stringContaining(`${jwks}: ENOENT; the known keys`) }),
    ]);
    const old = await issuer.token();
    await issuer.rotate();
    await expect(RawClient.as(at.url, await issuer.token())).rejects.toThrow("AUTHENTICATION_FAILED");
    await writeFile(jwks, JSON.stringify(issuer.jwks));
    await RawClient.as(at.url, await issuer.token());
    await expect(RawClient.as(at.url, old)).rejects.toThrow("AUTHENTICATION_FAILED");
    expect(issuer.fetches).toBe(0);
    expect(warned()).toHaveLength(1);
  });
});
