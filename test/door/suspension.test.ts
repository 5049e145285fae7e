import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { HostDoors } from "../hosts/door-harness.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const SUSPENDED = { code: "FLEET_USER_SUSPENDED" };

/** Opens a connection that the front door has to refuse, and returns the error. */
async function refusal(url: string, token: string): Promise<unknown> {
  const client = await RawClient.open(url);
  return (await client.request("connect", { token, supportedTaskKinds: [] })).error?.data;
}

describe("the commands, for a suspended user,", () => {
  const fleet = testFleet();

  it("refuse everything that would begin something, keep the data, and work again after user resume", async () => {
    const user = unused("ann");
    const id = unused("notes");
    await fleet.create(user, id);
    const shown = await fleet.ok(["user", "suspend", user, "--reason", "lost laptop"]);
    expect(shown).toMatch(/^ann-\d+ is suspended since \S+Z\. 1 server stopped\.\n$/);
    const as = ["--user", user];
    const refused = [
      ["send", id, "hi", ...as],
      ["create", ...as],
      ["spawn", ...as],
      ["resume", id, ...as],
      ["connect", ...as],
      ["lock", id, ...as],
      ["restart", user],
    ];
    for (const args of refused) {
      const error = await fleet.refusal(5, args);
      expect(error, args[0]).toMatchObject({ ...SUSPENDED, suggestions: [`copilotfleet user resume ${user}`] });
      expect(error.message).toMatch(/^User "ann-\d+" has been suspended since \S+Z\.$/);
    }
    const { stderr } = await fleet.run(["spawn", ...as]);
    expect(stderr).toContain("the reason for the suspension: lost laptop");
    const suspended = { since: expect.any(String), reason: "lost laptop" };
    const { users } = await fleet.json<{ users: object[] }>(["user", "list"]);
    expect(users).toContainEqual({ user, sessions: 1, servers: 1, tokens: 0, suspended });
    expect(await fleet.json(["describe", user])).toMatchObject({ suspended });
    // A further suspension keeps the time and the reason of the first one, and new limits keep the suspension.
    expect(await fleet.json(["user", "suspend", user])).toMatchObject({ ...suspended, known: true, stopped: [] });
    await fleet.ok(["limit", "set", ...as, "--sessions", "5"]);
    await fleet.ok(["limit", "clear", ...as]);
    expect(await fleet.refusal(5, ["create", ...as])).toMatchObject(SUSPENDED);
    expect(await fleet.json(["gc"])).toMatchObject({ deleted: [] });
    await fleet.ok(["user", "resume", user]);
    expect(await fleet.ok(["send", id, "hi", ...as])).toContain("hi");
    const { events } = await fleet.json<{ events: { type: string }[] }>(["events", "--user", user]);
    const event = { user, actor: { via: "command" }, outcome: "ok" };
    expect(events.filter(({ type }) => type.startsWith("user."))).toMatchObject([
      { ...event, type: "user.suspended", detail: "lost laptop" },
      { ...event, type: "user.suspended", detail: null },
      { ...event, type: "user.resumed" },
    ]);
  });

  it("user suspend accepts a user whom the fleet does not know, and user resume refuses one who is not suspended", async () => {
    const shown = await fleet.ok(["user", "suspend", "newcomer"]);
    expect(shown).toMatch(/ 0 servers stopped\.\nThe user has no session, server or token\.\n$/);
    expect(await fleet.refusal(5, ["create", "--user", "newcomer"])).toMatchObject(SUSPENDED);
    expect(await fleet.ok(["user", "resume", "newcomer"])).toBe("newcomer is no longer suspended.\n");
    const refused = await fleet.refusal(4, ["user", "resume", "newcomer"]);
    expect(refused).toMatchObject({
      code: "FLEET_NAME_NOT_FOUND",
      message: 'User "newcomer" is not suspended.',
    });
    expect((await fleet.refusal(2, ["user", "suspend", "x", "--reason", "a\nb"])).message).toContain("--reason is ");
  });
});

describe("the front door, when a user is suspended during a turn,", () => {
  it.each(["per-user", "shared"] as const)(
    "aborts the turn and closes the connection, and lets other users go on (isolation %s)",
    async (isolation) => {
      await using at = await DoorFleet.open({ config: { isolation } });
      const token = await at.token("ann");
      const ann = await RawClient.as(at.url, token);
      const ben = await RawClient.as(at.url, await at.token("ben"));
      await ann.requestOk("session.create", { sessionId: "hers" });
      await ben.requestOk("session.create", { sessionId: "his" });
      const [hers, his] = [ann.turn("hers", "!hold hers"), ben.turnOk("his", "!hold his")];
      hers.catch(() => "the connection is closed");
      await at.fleet.sessions.leave(await at.fleet.sessions.create({ user: "ann", sessionId: "other" }), {
        park: true,
      });
      const outside = at.fleet.sessions.use("other", "!hold other", { user: "ann" }).catch((error: unknown) => error);
      for (const name of ["!hold hers", "!hold his", "!hold other"])
        await expect.poll(() => at.model.shown(name)).toBe(1);
      await at.fleet.users.suspend("ann", { reason: "lost laptop" });
      await ann.end();
      // No connection of a client ends this turn, which a program began without the front door.
      await outside;
      const ended = async () => (await at.fleet.events.list({ user: "ann" })).map(({ type }) => type);
      await expect.poll(ended).toEqual(expect.arrayContaining([expect.stringMatching(/^turn\.(?:ended|cut)$/)]));
      expect(await refusal(at.url, token)).toEqual({ ...SUSPENDED, retryable: false });
      expect(at.events).toContainEqual(expect.objectContaining({ event: "denied", ...SUSPENDED }));
      await expect(at.fleet.sessions.use("hers", "hi", { user: "ann" })).rejects.toMatchObject(SUSPENDED);
      at.model.letGo("his");
      await his;
      await at.fleet.users.resume("ann");
      const again = await RawClient.as(at.url, token);
      await again.requestOk("session.resume", { sessionId: "hers" });
      await again.turnOk("hers", "hello");
    },
  );
});

describe.skipIf(redisProblem() !== undefined)("on two hosts, a suspension", () => {
  let redis: RedisServer;
  let at: HostDoors;
  beforeAll(async () => {
    redis = await RedisServer.start();
    at = await HostDoors.open({ redis, storage: "local" });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
    await redis.end();
  });

  it("on one host ends the user's connections and turns on both, and both refuse the user until the other host resumes", async () => {
    await at.place("ann", "h2");
    const token = await at.token("ann");
    const [relayed, direct] = [await RawClient.as(at.url("h1"), token), await RawClient.as(at.url("h2"), token)];
    await relayed.requestOk("session.create", { sessionId: "hers" });
    const turn = relayed.turn("hers", "!hold hers");
    turn.catch(() => "the connection is closed");
    await eventually("the turn on h2", () => at.model.shown("!hold hers") === 1);
    const suspended = await at.hosts.host("h1").json(["user", "suspend", "ann"]);
    expect(suspended).toMatchObject({ user: "ann", known: true, stopped: [{ hostName: "h2" }] });
    await Promise.all([relayed.end(), direct.end()]);
    for (const name of ["h1", "h2"]) {
      expect(await refusal(at.url(name), token), name).toMatchObject(SUSPENDED);
      const sent = await at.hosts.host(name).run(["send", "hers", "hi", "--user", "ann", "--json"]);
      expect([sent.code, JSON.parse(sent.stdout)], name).toMatchObject([5, { error: SUSPENDED }]);
    }
    expect(await at.hosts.host("h2").json(["user", "resume", "ann"])).toEqual({ user: "ann" });
    await eventually("the end of the suspension on h1", async () => (await refusal(at.url("h1"), token)) === undefined);
    const again = await RawClient.as(at.url("h1"), token);
    await again.requestOk("session.resume", { sessionId: "hers" });
    await again.turnOk("hers", "hello");
  });
});
