import { connect, createServer, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readRedisUrl } from "../../src/base/values/network.js";
import { issueVisitToken } from "../../src/hosts/calls/control-link.js";
import { issueHostToken, issueRelayToken, issueToken } from "../../src/identity/tokens.js";
import { keyPrefix } from "../../src/store/redis/rows.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import type { TestHosts } from "../fixtures/hosts/hosts.js";
import { GitHubAccounts } from "../fixtures/identity/github-accounts.js";
import { Issuer } from "../fixtures/identity/issuer.js";
import { freePort, RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { configure, HostDoors } from "./door-harness.js";

const problem = redisProblem();
const TOKEN = /cft_[a-z0-9]{16}_[\w-]{43}/g;

/** Records everything that other hosts send to a front door. */
async function recorder(door: number) {
  const seen = { text: "", connections: new Set<Socket>() };
  const server = createServer((socket) => {
    const onward = connect(door, "127.0.0.1");
    seen.connections.add(socket);
    socket.on("data", (data) => {
      seen.text += data.toString("latin1");
    });
    for (const [from, to] of [
      [socket, onward],
      [onward, socket],
    ] as const) {
      from.on("error", () => to.destroy());
      from.on("close", () => {
        seen.connections.delete(socket);
        to.destroy();
      });
      from.pipe(to);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address() as { port: number };
  return { port: address.port, seen, close: () => server.close() };
}

describe.skipIf(problem !== undefined)("when a host relays a client to another host,", () => {
  let redis: RedisServer;
  let issuer: Issuer;
  let github: GitHubAccounts;
  let at: HostDoors;
  let way: Awaited<ReturnType<typeof recorder>>;

  beforeAll(async () => {
    [redis, issuer, github] = [await RedisServer.start(), await Issuer.open(), await GitHubAccounts.open()];
    const door = await freePort();
    way = await recorder(door);
    const identity = {
      jwt: [{ issuer: issuer.url, audience: "copilotfleet" }],
      github: { api: github.url, organizations: [] },
    };
    const prepare = (hosts: TestHosts) => {
      configure(hosts, ["h1", "h2"], { identity });
      Object.assign(hosts.host("h2").env, {
        COPILOTFLEET_SERVE_LISTEN: `127.0.0.1:${door}`,
        COPILOTFLEET_HOST_ADVERTISE: `127.0.0.1:${way.port}`,
      });
    };
    at = await HostDoors.open({ redis, storage: "local", prepare });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    way.close();
    await issuer[Symbol.asyncDispose]();
    await github[Symbol.asyncDispose]();
    await redis.end();
  });

  function keyOf(tokenId: string): string {
    const fleet = readRedisUrl(at.hosts.host("h1").env.COPILOTFLEET_STORE ?? "")?.fleet ?? "";
    return `${keyPrefix(fleet)}token:${tokenId}`;
  }

  it("the other host receives a token that only this connection can use, never the client's own token", async () => {
    await at.place("alice", "h2");
    const own = await at.token("alice");
    const client = await RawClient.as(at.url("h1"), own);
    const session = `s-${Date.now()}`;
    await client.requestOk("session.create", { sessionId: session });
    expect(await client.turn(session, "one")).toMatchObject({ result: {} });
    const sent = [...new Set(way.seen.text.match(TOKEN))];
    expect(sent.length).toBeGreaterThan(0);
    expect(way.seen.text).not.toContain(own);
    expect(way.seen.text).not.toContain(own.slice(-20));
    for (const token of sent)
      for (const name of ["h1", "h2"])
        await expect(RawClient.as(at.url(name), token), name).rejects.toThrow("AUTHENTICATION_FAILED");
    expect((await at.store.tokens.list()).filter(({ relayed }) => relayed !== undefined)).toEqual([]);
  });

  it("a relay token is accepted only once, and only at the front door of the host for which it was issued", async () => {
    const { id: tokenId } = await issueToken(at.store, "carol", null);
    const identity = { user: "carol", scopes: ["use"], groups: [], tokenId, expiresAt: null, via: "token" } as const;
    const { token } = await issueRelayToken(at.store, identity, "h1");
    await expect(RawClient.as(at.url("h2"), token)).rejects.toThrow("AUTHENTICATION_FAILED");
    await RawClient.as(at.url("h1"), token);
    await expect(RawClient.as(at.url("h1"), token)).rejects.toThrow("AUTHENTICATION_FAILED");
  });

  it("a used relay, visit or host token stays refused if its Redis record is restored and h1 restarts", async () => {
    const { id: tokenId } = await issueToken(at.store, "dave", null);
    const identity = { user: "dave", scopes: ["use"], groups: [], tokenId, expiresAt: null, via: "token" } as const;
    const issued = [
      await issueRelayToken(at.store, identity, "h1"),
      await issueVisitToken(at.store, "dave", "h1", {}),
      await issueHostToken(at.store, "h2", "h1"),
    ];
    const records = await Promise.all(issued.map(async ({ id }) => ({ id, text: await redis.client.get(keyOf(id)) })));
    for (const { token } of issued) await RawClient.as(at.url("h1"), token);
    const tryAgain = async () => {
      for (const { id, text } of records) await redis.client.set(keyOf(id), text ?? "");
      for (const { token } of issued)
        await expect(RawClient.as(at.url("h1"), token)).rejects.toThrow("AUTHENTICATION_FAILED");
    };
    await tryAgain();
    await at.hosts.host("h1").stopServing("SIGTERM");
    await at.serve();
    await tryAgain();
  });

  it("the library sends the other host a token that no second connection can use at the same time", async () => {
    const erin = `s-${Date.now()}`;
    await at.place("erin", "h2");
    await (await RawClient.as(at.url("h2"), await at.token("erin"))).requestOk("session.create", { sessionId: erin });
    const before = new Set(way.seen.text.match(TOKEN));
    await using fleet = await at.hosts.host("h1").library();
    const session = await fleet.sessions.resume(erin, { user: "erin" });
    const sent = [...new Set(way.seen.text.match(TOKEN))].filter((token) => !before.has(token));
    expect(sent.length).toBeGreaterThan(0);
    for (const token of sent)
      for (const name of ["h1", "h2"])
        await expect(RawClient.as(at.url(name), token), name).rejects.toThrow("AUTHENTICATION_FAILED");
    expect(JSON.stringify(await fleet.sessions.send(session, "still here"))).toContain("still here");
  });

  it("the connection to the other host ends when the client's own token is revoked", async () => {
    await at.place("bob", "h2");
    const own = await at.token("bob");
    const before = new Set(way.seen.connections);
    const client = await RawClient.as(at.url("h1"), own);
    await client.requestOk("session.create", {});
    const [leg] = [...way.seen.connections].filter((socket) => !before.has(socket));
    expect(leg).toBeDefined();
    await at.store.tokens.delete(own.split("_")[1] ?? "");
    await client.end();
    await eventually("the end of the relayed connection", () => leg !== undefined && !way.seen.connections.has(leg));
  });

  it("a client's JSON Web Token never reaches the other host, and its expiry ends the relayed connection", async () => {
    await at.place("frank", "h2");
    const token = await issuer.token({ sub: "frank", jti: "of-frank" });
    const client = await RawClient.as(at.url("h1"), token);
    const sessionId = `frank-${Date.now()}`;
    await client.requestOk("session.create", { sessionId });
    await client.turnOk(sessionId, "one");
    expect(await at.session(sessionId)).toMatchObject({ owner: "frank", host: "h2" });
    for (const part of token.split(".")) expect(way.seen.text).not.toContain(part);
    const before = new Set(way.seen.connections);
    const endsMs = Date.now() + 10_000;
    const short = await RawClient.as(at.url("h1"), await issuer.token({ sub: "frank", exp: endsMs / 1_000 }));
    await short.requestOk("session.resume", { sessionId });
    const [leg] = [...way.seen.connections].filter((socket) => !before.has(socket));
    expect(leg).toBeDefined();
    await short.end();
    expect(Date.now()).toBeGreaterThanOrEqual(endsMs);
    await eventually("the end of the connection there", () => leg !== undefined && !way.seen.connections.has(leg));
    await client.turnOk(sessionId, "two");
    await at.hosts.host("h2").run(["token", "revoke", "jwt:of-frank", "--yes"]);
    await client.end();
  });

  it("a client's GitHub token does not reach the other host if the fleet has a model provider", async () => {
    await at.place("grace", "h2");
    github.accounts.set("gho_canaryGrace", { login: "grace" });
    const before = new Set(way.seen.connections);
    const client = await RawClient.as(at.url("h1"), "gho_canaryGrace");
    const sessionId = `grace-${Date.now()}`;
    await client.requestOk("session.create", { sessionId });
    await client.turnOk(sessionId, "one");
    expect(await at.session(sessionId)).toMatchObject({ owner: "grace", host: "h2" });
    expect(way.seen.text).not.toContain("canaryGrace");
    const legs = [...way.seen.connections].filter((socket) => !before.has(socket));
    expect(legs.length).toBeGreaterThan(0);
    await delay(3_000); // the other front door checks its clients every two seconds
    expect(legs.filter((socket) => way.seen.connections.has(socket))).toEqual(legs);
    await client.turnOk(sessionId, "two");
  });

  it("a client whose token is bound to one session reaches only that session, on either host", async () => {
    await at.place("heidi", "h2");
    const owner = await RawClient.as(at.url("h1"), await at.token("heidi"));
    const [bound, other] = [`bound-${Date.now()}`, `other-${Date.now()}`];
    for (const sessionId of [bound, other]) await owner.requestOk("session.create", { sessionId });
    const { token } = await issueToken(at.store, "heidi", null, { scopes: ["use"], sessionId: bound });
    const client = await RawClient.as(at.url("h1"), token);
    await client.requestOk("session.resume", { sessionId: bound });
    await client.turnOk(bound, "mine");
    for (const method of ["session.resume", "session.send", "session.getMessages"])
      expect((await client.request(method, { sessionId: other, prompt: "x" })).error, method).toBeDefined();
    for (const method of ["session.delete", "session.create"])
      expect((await client.request(method, { sessionId: other })).error?.data, method).toMatchObject({
        code: "FLEET_SCOPE_MISSING",
      });
    const listed = JSON.stringify((await client.requestOk("session.list")).result);
    expect([listed.includes(bound), listed.includes(other)]).toEqual([true, false]);
    const { id: tokenId } = await issueToken(at.store, "heidi", null);
    const narrow = { user: "heidi", scopes: ["use"], groups: [], tokenId, expiresAt: null, via: "token" } as const;
    const there = await issueRelayToken(at.store, { ...narrow, sessionId: bound }, "h2");
    const relayed = await RawClient.as(at.url("h2"), there.token);
    expect((await relayed.request("session.resume", { sessionId: other })).error).toBeDefined();
    await relayed.requestOk("session.resume", { sessionId: bound });
    expect(await at.session(other)).toMatchObject({ owner: "heidi" });
  });
});
