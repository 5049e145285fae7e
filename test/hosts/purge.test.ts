import { lstatSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { actingAs } from "../../src/events/acting.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import type { FleetEvent } from "../../src/model/events/event.js";
import type { PurgeReceipt } from "../../src/peers/purge.js";
import { rendezvousChoice } from "../../src/pool/placement.js";
import type { UsageReport } from "../../src/usage/ledger/report.js";
import { ask } from "../api/harness.js";
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

  it("with --lost-host, a purge removes the lost host's blocks, and the host erases the rest when it returns", async () => {
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const { user, id, block } = await takenOver("tia.quux");
    expect(lstatSync(block).isFile()).toBe(true);
    const purge = async (...more: string[]) => await h2.run(["user", "purge", user, "--yes", ...more]);
    expect(await purge()).toMatchObject({ code: 0 });
    // As long as the host may come back, the block keeps its servers from creating the session's folder again.
    expect(lstatSync(block).isFile()).toBe(true);
    expect(await purge("--lost-host", "h1")).toMatchObject({ code: 0 });
    expect(found(hosts.shared, [user, id])).toEqual([]);
    expect(found(h1.root, [id])).not.toEqual([]);
    await h1.ok(["gc"]);
    expect(tracesOf([user, id])).toEqual([]);
    await hosts.serve();
  });

  it("a purge does not wait for a host in --lost-host, and that host's next gc erases the user's data there", async () => {
    const [h1, h2] = [hosts.host("h1"), hosts.host("h2")];
    const user = userOf("h1", "xia.quux");
    const words = [user, user.replace(".", "-"), "plover-of-xia"];
    await h1.create(user, "of-xia");
    await h1.send(user, "of-xia", "plover-of-xia one");
    const shared = { env: { COPILOTFLEET_ISOLATION: "shared" } };
    await h1.create(user, user.replace(".", "-"), shared);
    await h1.send(user, user.replace(".", "-"), "plover-of-xia two", shared);
    const again = userOf("h1", "wes.quux");
    await h1.create(again, "of-wes");
    await h1.send(again, "of-wes", "plover-of-wes one");
    await hosts.lose("h1");
    // Without a term, as before the storage was shared, no other host can take the sessions over.
    for (const id of ["of-xia", user.replace(".", "-"), "of-wes"])
      await hosts.store.sessions.update(id, (draft) => void delete draft.term);
    const purge = async (host: string) => await h2.run(["user", "purge", user, "--yes", "--json", "--lost-host", host]);
    for (const [host, why] of [
      ["h2", "is alive and erases its part itself"],
      ["h9", "is not a host that this purge waits for"],
    ] as const) {
      const refused = await purge(host);
      const message = `--lost-host "${host}" ${why}. Allowed: "h1"`;
      expect(refused.json()).toMatchObject({ error: { code: "FLEET_USAGE_INVALID", message } });
    }
    expect(await hosts.store.purges.list()).toEqual([]);
    expect(await hosts.store.sessions.count(user, 9)).toBe(2);

    const what = expect.stringContaining("(sessions recorded there: 2, servers: 1)");
    const waiting = (await h2.run(["user", "purge", user, "--yes", "--json"])).json<PurgeReceipt>();
    expect(waiting.remains).toMatchObject([{ host: "h1", what, why: expect.stringContaining("--lost-host h1") }]);
    const receipt = (await purge("h1")).json<PurgeReceipt>();
    expect(receipt.remains).toMatchObject([{ host: "h1", what, why: expect.stringContaining("The host is lost") }]);
    const pseudonym = expect.stringMatching(/^~/);
    const note = { pending: ["h1"], left: [pseudonym, pseudonym, pseudonym, pseudonym] };
    expect(await hosts.store.purges.list()).toMatchObject([note]);
    const left = await dump(redis);
    for (const word of words) expect(left).not.toContain(word);
    expect((await h2.run(["gc"])).code).toBe(0); // the note is not for this host
    const { checks } = (await h2.run(["doctor", "--quick", "--json"])).json<DoctorResult>();
    expect(checks.find(({ name }) => name === "purges")).toMatchObject({ level: "ok" });
    const purged = await h2.run(["events", "--type", "user.purged", "--json"]);
    const { events } = purged.json<{ events: FleetEvent[] }>();
    expect(events.at(-1)).toMatchObject({ reason: "host-lost", detail: "without host h1", outcome: "ok" });
    expect(events.at(-1)?.user).toMatch(/^~/);

    // The same over HTTP, for a user who later creates a session again.
    const library = await h2.library();
    const { url } = await library.doors.openHttp({ listen: "127.0.0.1:0" });
    const { token } = await library.tokens.issue("root", { scopes: ["admin"] });
    const overHttp = async (lost: string) =>
      await ask(url, "DELETE", `/v1/users/${again}?lostHosts=${lost}`, { token });
    const detail = 'lostHosts "h2" is alive and erases its part itself. Allowed: "h1"';
    expect((await overHttp("h1,h2")).json).toMatchObject({ status: 422, code: "FLEET_USAGE_INVALID", detail });
    expect(await hosts.store.purges.list()).toMatchObject([note]);
    const { remains } = (await overHttp("h1")).json;
    expect(remains).toMatchObject([{ host: "h1", why: expect.stringContaining("The host is lost") }]);
    await library.close();
    await h2.create(again, "wes-again");
    await h2.send(again, "wes-again", "one");
    expect(await hosts.store.purges.list()).toHaveLength(2);
    expect(tracesOf([...words, "plover-of-wes"])).not.toEqual([]);

    await h1.ok(["gc"]); // without serve, which would run gc itself
    expect(await hosts.store.purges.list()).toEqual([]);
    expect(tracesOf([...words, "plover-of-wes"])).toEqual([]);
    const later = await h1.json<{ events: FleetEvent[] }>(["events", "--type", "user.purged"]);
    expect(later.events.at(-1)).toMatchObject({ host: "h1", user: pseudonym, reason: "host-back", outcome: "ok" });
    expect(await h1.json(["events", "verify"])).toMatchObject({ ok: true });
    expect(await h2.send(again, "wes-again", "two")).toBe("[turn 2] two");
    const { usage } = await h2.json<UsageReport>(["usage"]);
    expect(usage).toContainEqual(expect.objectContaining({ key: again, turns: 2 }));
    await hosts.serve();
  });
});
