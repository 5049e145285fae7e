import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readRedisUrl } from "../../src/base/values/network.js";
import { keyPrefix } from "../../src/store/redis/rows.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import type { TestHosts } from "../fixtures/hosts/hosts.js";
import { Issuer } from "../fixtures/identity/issuer.js";
import { unused } from "../fixtures/sessions/unused.js";
import { recordedIds } from "../fixtures/store/database.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { configure, HostDoors } from "./door-harness.js";

const problem = redisProblem();
const NAMES = ["h1", "h2"] as const;

/** The attacker can read and write everything in Redis, but has no key. */
describe.skipIf(problem !== undefined)("on hosts that share a Redis,", () => {
  let redis: RedisServer;
  let issuer: Issuer;
  let at: HostDoors;
  let prefix: string;

  beforeAll(async () => {
    [redis, issuer] = [await RedisServer.start(), await Issuer.open()];
    const jwt = [{ issuer: issuer.url, audience: "copilotfleet" }];
    const prepare = (hosts: TestHosts) => configure(hosts, NAMES, { identity: { jwt } });
    at = await HostDoors.open({ redis, storage: "local", prepare });
    prefix = keyPrefix(readRedisUrl(at.hosts.host("h1").env.COPILOTFLEET_STORE ?? "")?.fleet ?? "");
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    await issuer[Symbol.asyncDispose]();
    await redis.end();
  });

  const idOf = (token: string) => token.split("_")[1] ?? "";

  /** @returns a function that restores a token's record to its present state */
  async function copyOf(id: string): Promise<() => Promise<void>> {
    const text = (await redis.client.get(`${prefix}token:${id}`)) ?? "";
    expect(text).toContain(id);
    return async () => {
      await redis.client.set(`${prefix}token:${id}`, text);
      await redis.client.zadd(`${prefix}token-ids`, 0, id);
    };
  }

  async function isRefusedEverywhere(token: string): Promise<void> {
    for (const name of NAMES)
      await expect(RawClient.as(at.url(name), token), name).rejects.toThrow("AUTHENTICATION_FAILED");
  }

  it("both hosts disconnect the clients of a revoked token and refuse the token, even if somebody restores its record", async () => {
    const token = await at.token("alice");
    const clients = await Promise.all(NAMES.map(async (name) => await RawClient.as(at.url(name), token)));
    const putBack = await copyOf(idOf(token));
    const ran = await at.hosts.host("h1").run(["token", "revoke", idOf(token), "--yes"]);
    expect(ran).toMatchObject({ code: 0, stderr: "" });
    await putBack();
    await Promise.all(clients.map(async (client) => await client.end()));
    await isRefusedEverywhere(token);
    for (const name of NAMES) {
      const { tokens } = (await at.hosts.host(name).json(["token", "list"])) as { tokens: { id: string }[] };
      expect(tokens.filter(({ id }) => id === idOf(token))).toEqual([]);
    }
    await at.hosts.host("h2").stopServing("SIGTERM");
    await at.serve();
    await isRefusedEverywhere(token);
  });

  it("a rotated token is refused on both hosts after its overlap, even if somebody restores its record", async () => {
    const token = await at.token("bob");
    const putBack = await copyOf(idOf(token));
    const rotated = await at.hosts.host("h2").run(["token", "rotate", idOf(token), "--overlap", "0"]);
    expect(rotated.code).toBe(0);
    await putBack();
    await isRefusedEverywhere(token);
    for (const name of NAMES) await RawClient.as(at.url(name), rotated.stdout.trim());
  });

  it("a revoked JSON Web Token is refused on both hosts, even if its revocation record is deleted", async () => {
    const token = await issuer.token({ sub: "carol", jti: "t-1" });
    for (const name of NAMES) await RawClient.as(at.url(name), token);
    expect(await at.hosts.host("h1").run(["token", "revoke", "jwt:t-1", "--yes"])).toMatchObject({ code: 0 });
    for (const { id, role } of await at.store.tokens.list())
      if (role === "revoked") await redis.client.del(`${prefix}token:${id}`);
    await isRefusedEverywhere(token);
  });

  it("token revoke names a host that is down, and that host refuses the token after its next start", async () => {
    const token = await at.token("dave");
    const putBack = await copyOf(idOf(token));
    await at.hosts.host("h2").die();
    await eventually(
      "the end of h2",
      async () => (await at.store.hosts.list()).find(({ name }) => name === "h2")?.gone,
    );
    const ran = await at.hosts.host("h1").run(["token", "revoke", idOf(token), "--yes"]);
    expect(ran.code).toBe(0);
    expect(ran.stderr).toContain('Not told of the end of the tokens: "h2".');
    await putBack();
    await at.serve();
    await isRefusedEverywhere(token);
  });

  it("both hosts refuse a removed member who gets back an older record of the session", async () => {
    const h1 = at.hosts.host("h1");
    await at.place("frank", "h1");
    const sessionId = unused("shared");
    await h1.json(["create", "--user", "frank", "--id", sessionId, "--collaborative", "--member", "grace"]);
    const frank = await RawClient.as(at.url("h1"), await at.token("frank"));
    await frank.requestOk("session.resume", { sessionId });
    await frank.turnOk(sessionId, "for members only");
    await eventually("the end of the turn", async () => (await at.store.leases.read(sessionId)) === null);
    const text = (await redis.client.get(`${prefix}session:${sessionId}`)) ?? "";
    expect(text).toContain("grace");

    const token = await at.token("grace");
    const asked = async (name: string) =>
      await (await RawClient.as(at.url(name), token)).request("session.resume", { sessionId });
    await at.store.sessions.update(sessionId, (draft) => {
      draft.members = [];
    });
    for (const name of NAMES)
      expect(await asked(name), name).toMatchObject({ error: { data: { code: "FLEET_SESSION_NOT_FOUND" } } });
    await redis.client.set(`${prefix}session:${sessionId}`, text);
    for (const name of NAMES)
      expect(await asked(name), name).toMatchObject({ error: { data: { code: "FLEET_STATE_UNSIGNED" } } });
    expect(await redis.client.get(`${prefix}session:${sessionId}`)).toBe(text);
  });

  it("gc deletes a host's note of a revoked token only after the token would have expired", async () => {
    const { root } = at.hosts.host("h1");
    const run = async (args: string[]) => await at.hosts.host("h1").run(args);
    const issued = async (ttl: string) => (await run(["token", "issue", "--user", "erin", "--ttl", ttl])).stdout.trim();
    const [short, long] = [await issued("1s"), await issued("1h")];
    await run(["token", "revoke", idOf(short), idOf(long), "--yes"]);
    expect(recordedIds(root, "token-end")).toEqual(expect.arrayContaining([idOf(short), idOf(long)]));
    await eventually("the end of the note", async () => {
      await run(["gc", "--yes"]);
      return !recordedIds(root, "token-end").includes(idOf(short));
    });
    expect(recordedIds(root, "token-end")).toContain(idOf(long));
  });
});
