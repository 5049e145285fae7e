import { lstatSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { UsageReport } from "../../src/accounts/ledger.js";
import type { FleetEvent } from "../../src/base/event.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import type { PurgeReceipt } from "../../src/hosts/purge.js";
import { actingAs } from "../../src/identity/acting.js";
import { rendezvousChoice } from "../../src/servers/placement.js";
import { found } from "../fixtures/found.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`purges on several hosts are not tested: ${problem}`);

/** A user who belongs on this host when both hosts are alive. */
function userOf(host: string, name: string): string {
  const names = Array.from({ length: 100 }, (_, index) => `${name}${index}x`);
  return names.find((user) => rendezvousChoice(user, ["h1", "h2"]) === host) ?? "";
}

/** All keys and values of the database. */
async function dump({ client }: RedisServer): Promise<string> {
  const texts: string[] = [];
  for (const key of await client.keys("*")) {
    texts.push(key);
    const type = await client.type(key);
    if (type === "string") texts.push((await client.get(key)) ?? "");
    else if (type === "hash") texts.push(JSON.stringify(await client.hgetall(key)));
    else if (type === "set") texts.push(...(await client.smembers(key)));
    else if (type === "zset") texts.push(...(await client.zrange(key, "0", "-1")));
    else if (type === "list") texts.push(...(await client.lrange(key, 0, -1)));
    else texts.push(`unknown type ${type}`);
  }
  return texts.join("\n");
}

describe.skipIf(problem !== undefined)("on two hosts with shared storage,", () => {
  let redis: RedisServer;
  let hosts: TestHosts;
  beforeAll(async () => {
    redis = await RedisServer.start();
    hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "shared" });
    await hosts.serve();
  });
  afterAll(async () => {
    await hosts[Symbol.asyncDispose]();
    await redis.end();
  });

  /** A session on a shared server, with the user's name as its id. h1 had it, is lost, and left the block there. */
  const takenOver = async (name: string) => {
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const user = userOf("h1", name);
    const id = user.replace(".", "-");
    const shared = { env: { COPILOTFLEET_ISOLATION: "shared" } };
    await h1.create(user, id, shared);
    await h1.send(user, id, "one", shared);
    await hosts.lose("h1");
    expect(await h2.send(user, id, "two", shared)).toBe("[turn 2] two");
    return { user, id, block: join(hosts.shared, "hosts", "h1", "shared", "session-state", id) };
  };

  const tracesOf = (words: readonly string[]) =>
    [hosts.host("h1").root, hosts.host("h2").root, hosts.shared].flatMap((folder) => found(folder, words));

  it("a purge leaves no file and no key with the user's name or text, and keeps other users' data", async () => {
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const [user, other] = [userOf("h1", "zoe.quux"), userOf("h1", "stays")];
    const words = [user, user.replace(".", "-"), "plover-of-zoe"];
    await h1.create(user, "of-zoe");
    await h1.send(user, "of-zoe", "plover-of-zoe one");
    await h1.create(other, "of-other");
    await h1.send(other, "of-other", "one");
    await h2.json(["token", "issue", "--user", user, "--ttl", "1h"]);
    expect(tracesOf(words).length).toBeGreaterThan(3);
    expect(await dump(redis)).toContain(user);

    const library = await h2.library();
    const admin = { user: "admin", tokenId: "t1", via: "http" } as const;
    const receipt = await actingAs(admin, async () => await library.users.purge(user));
    await library.close();
    expect(receipt).toMatchObject({ user, sessions: 1, servers: 1, tokens: 1, remains: [] });
    // The session was created on one host, and the token was issued on the other.
    const { events } = await h1.json<{ events: FleetEvent[] }>(["events"]);
    const about = events.filter(({ type }) => ["session.created", "token.issued", "user.purged"].includes(type));
    const names = about.filter(({ user: whom }) => whom?.startsWith("~")).map((event) => `${event.host} ${event.user}`);
    expect(new Set(names).size).toBe(2);
    // Only one host received the request, but the log of the other host names its sender, too.
    const purged = about.filter(({ type }) => type === "user.purged");
    expect(purged.map(({ host }) => host).sort()).toEqual(["h1", "h2"]);
    for (const { actor } of purged) expect(actor).toMatchObject(admin);
    expect(new Set(names.map((name) => name.split(" ")[1])).size).toBe(1);
    expect(tracesOf(words)).toEqual([]);
    const left = await dump(redis);
    for (const word of words) expect(left).not.toContain(word);
    expect(await h1.send(other, "of-other", "two")).toBe("[turn 2] two");
  });

  it("a purge reports a host that is not alive, and that host's next gc erases the user's data there", async () => {
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const user = userOf("h1", "yan.quux");
    const words = [user, user.replace(".", "-"), "plover-of-yan"];
    await h1.create(user, "of-yan");
    await h1.send(user, "of-yan", "plover-of-yan one");
    await h1.die();
    const purged = await h2.run(["user", "purge", user, "--yes", "--json"]);
    expect(purged.code).toBe(0);
    const receipt = purged.json<PurgeReceipt>();
    expect(receipt.remains).toMatchObject([{ host: "h1", why: expect.stringContaining("gc") }]);
    expect(await hosts.store.purges.list()).toMatchObject([{ user, pending: ["h1"] }]);
    await h1.ok(["gc"]); // without serve, which would run gc itself
    expect(await hosts.store.purges.list()).toEqual([]);
    expect(tracesOf(words)).toEqual([]);
    const left = await dump(redis);
    for (const word of words) expect(left).not.toContain(word);
    await hosts.serve();
  });

  it("a purge removes the block of a session that another host took over", async () => {
    const h2 = hosts.host("h2");
    const { user, id, block } = await takenOver("uma.quux");
    await hosts.serve();
    expect(lstatSync(block).isFile()).toBe(true);
    await h2.ok(["user", "purge", user, "--yes"]);
    expect(tracesOf([user, id])).toEqual([]);
  });

  it("the block of a lost host stays until the host comes back and erases its part", async () => {
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const { user, id, block } = await takenOver("tia.quux");
    expect(await h2.run(["user", "purge", user, "--yes"])).toMatchObject({ code: 0 });
    // The block keeps the host's servers from creating the session's folder again.
    expect(lstatSync(block).isFile()).toBe(true);
    expect(found(h1.root, [id])).not.toEqual([]);
    await h1.ok(["gc"]);
    expect(tracesOf([user, id])).toEqual([]);
    await hosts.serve();
  });

  it("a host that comes back erases what a purge named, and leaves alone what the user began after the purge", async () => {
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const user = userOf("h1", "xia.quux");
    const again = userOf("h1", "wes.quux");
    const shared = { env: { COPILOTFLEET_ISOLATION: "shared" } };
    await h1.create(user, "of-xia");
    await h1.send(user, "of-xia", "plover-of-xia one");
    await h1.create(user, "shared-of-xia", shared);
    await h1.send(user, "shared-of-xia", "plover-of-xia two", shared);
    await h1.create(again, "of-wes");
    await h1.send(again, "of-wes", "plover-of-wes one");
    await hosts.lose("h1");
    // Without a term, as before the storage was shared, no other host can take the sessions over.
    for (const id of ["of-xia", "shared-of-xia", "of-wes"])
      await hosts.store.sessions.update(id, (draft) => void delete draft.term);

    const what = expect.stringContaining("(sessions recorded there: 2, servers: 1)");
    const receipt = (await h2.run(["user", "purge", user, "--yes", "--json"])).json<PurgeReceipt>();
    expect(receipt.remains).toMatchObject([{ host: "h1", what, why: expect.stringContaining("The host is away.") }]);
    expect(await h2.run(["user", "purge", again, "--yes"])).toMatchObject({ code: 0 });
    expect(await hosts.store.purges.list()).toHaveLength(2);
    expect(await hosts.store.sessions.count(user)).toBe(0);
    const { checks } = (await h2.run(["doctor", "--quick", "--json"])).json<DoctorResult>();
    expect(checks.find(({ name }) => name === "purges")).toMatchObject({ level: "ok" });
    await h2.create(again, "of-wes");
    await h2.send(again, "of-wes", "one");

    const words = [user, user.replace(".", "-"), "plover-of-xia"];
    expect(found(h1.root, [...words, "plover-of-wes"])).not.toEqual([]);
    await h1.ok(["gc"]); // without serve, which would run gc itself
    expect(await hosts.store.purges.list()).toEqual([]);
    expect(tracesOf([...words, "plover-of-wes"])).toEqual([]);
    const left = await dump(redis);
    for (const word of words) expect(left).not.toContain(word);
    expect(await h1.json(["events", "verify"])).toMatchObject({ ok: true });
    expect(await h2.send(again, "of-wes", "two")).toBe("[turn 2] two");
    const { usage } = await h2.json<UsageReport>(["usage"]);
    expect(usage).toContainEqual(expect.objectContaining({ key: again, turns: 2 }));
    await hosts.serve();
  });
});
