import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Fleet } from "../../src/index.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { Issuer } from "../fixtures/identity/issuer.js";
import { type HeldModel, startHeldModel } from "../fixtures/models/held-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`the limits of users on several hosts are not tested: ${problem}`);

const CLIENTS = process.env.SOAK === undefined ? 64 : 256;
/** Turns in one session run one after the other, so turns at the same time need several sessions. */
const SESSIONS = 8;

describe.skipIf(problem !== undefined)("for a user whose clients use two hosts at once,", () => {
  let redis: RedisServer;
  let model: HeldModel;
  let issuer: Issuer;
  let hosts: TestHosts;
  let fleets: Fleet[];
  beforeAll(async () => {
    redis = await RedisServer.start();
    model = await startHeldModel();
    issuer = await Issuer.open();
    const jwt = JSON.stringify([{ issuer: issuer.url, audience: "copilotfleet" }]);
    const groups = JSON.stringify({ interns: { connections: 3 } });
    const env = { ...model.env, COPILOTFLEET_IDENTITY_JWT: jwt, COPILOTFLEET_LIMITS_GROUPS: groups };
    hosts = new TestHosts({ redis, names: ["h1", "h2"], storage: "local", env });
    await hosts.serve();
    fleets = await Promise.all(["h1", "h2"].map(async (name) => await hosts.host(name).library()));
  });
  afterAll(async () => {
    model.release();
    for (const fleet of fleets) await fleet.close();
    await hosts[Symbol.asyncDispose]();
    await model.close();
    await issuer[Symbol.asyncDispose]();
    await redis.end();
  });
  const at = (index: number) => fleets[index % fleets.length] as Fleet;

  /** Makes a new user, because each process caches a user's limits for a second. No process has read the new user's. */
  async function userWith(limits: Parameters<Fleet["limits"]["set"]>[1]): Promise<string> {
    const user = unused("u");
    await at(0).limits.set(user, { ...limits, connections: "unlimited" });
    return user;
  }

  async function sessionsOf(user: string): Promise<string[]> {
    const ids = Array.from({ length: SESSIONS }, () => unused("s"));
    for (const [index, id] of ids.entries()) {
      const fleet = at(index);
      await fleet.sessions.leave(await fleet.sessions.create({ user, sessionId: id }));
    }
    return ids;
  }

  /** Sends one prompt per client at the same moment. @returns how each ended: "ok", or the limit that was reached */
  function prompts(user: string, ids: readonly string[], prompt: string): Promise<string>[] {
    return Array.from({ length: CLIENTS }, async (_, index) => {
      const turn = at(index).sessions.use(ids[Math.floor(index / 2) % ids.length] ?? "", prompt, {
        user,
        wait: "120s",
      });
      return await turn.then(
        () => "ok",
        (error: { limit?: string; retryAfterMs?: number; message: string }) => {
          if (error.limit !== undefined) expect(error.retryAfterMs).toBeGreaterThan(0);
          return error.limit ?? error.message;
        },
      );
    });
  }

  it("exactly as many turns run at once, and in one minute, as the user's limits allow", async () => {
    const user = await userWith({ concurrentTurns: 5 });
    await hosts.place(user, "h2");
    const ids = await sessionsOf(user);
    const ends: string[] = [];
    const all = prompts(user, ids, "!hold on").map(async (turn) => void ends.push(await turn));
    await eventually("the refusals", () => ends.length === CLIENTS - 5, 120_000);
    expect(new Set(ends)).toEqual(new Set(["concurrentTurns"]));
    // Some of the five may wait for another turn in the same session.
    await eventually("the turns at once", () => model.held() > 0);
    expect(model.held()).toBeLessThanOrEqual(5);
    await eventually("the turns", () => {
      model.release();
      return ends.length === CLIENTS;
    });
    await Promise.all(all);
    expect(ends.filter((end) => end === "ok")).toHaveLength(5);
    // A turn gives its slot back after its reply.
    await eventually("the slots", async () => (await at(1).limits.get(user)).used.concurrentTurns === 0);

    const other = await userWith({ turnsPerMinute: 7 });
    await hosts.place(other, "h1");
    const others = await sessionsOf(other);
    const results = await Promise.all(prompts(other, others, "hello"));
    expect(results.filter((end) => end === "ok").length, results.join()).toBe(7);
    expect(results.filter((end) => end === "turnsPerMinute")).toHaveLength(CLIENTS - 7);
  });

  it("when a budget is used up, running turns may exceed it, but waiting prompts are refused", async () => {
    const first = await userWith({});
    const [id = ""] = await sessionsOf(first);
    await at(0).sessions.use(id, "hello", { user: first, wait: "120s" });
    // The other host may have run the turn, and sends its ledger lines a moment later.
    const used = async () => (await at(0).limits.get(first)).used.tokensPerDay || null;
    const ofOne = await eventually("the tokens of a turn", used);
    const user = await userWith({ tokensPerDay: Math.round(10.5 * ofOne) });
    await hosts.place(user, "h1");
    const ids = await sessionsOf(user);
    const results = await Promise.all(prompts(user, ids, "hello"));
    expect(new Set(results)).toEqual(new Set(["ok", "tokensPerDay"]));
    const begun = results.filter((end) => end === "ok").length;
    expect(begun).toBeGreaterThanOrEqual(10 - 1);
    expect(begun).toBeLessThanOrEqual(10 + SESSIONS);
  });

  it("a user can create exactly as many sessions as the limit allows", async () => {
    const user = await userWith({ sessions: 4 });
    const results = await Promise.all(
      Array.from({ length: CLIENTS }, async (_, index) => {
        try {
          await at(index).sessions.leave(await at(index).sessions.create({ user }));
          return "ok";
        } catch (error) {
          return (error as { limit?: string }).limit ?? String(error);
        }
      }),
    );
    expect(results.filter((end) => end === "ok").length, [...new Set(results)].join()).toBe(4);
    expect(new Set(results)).toEqual(new Set(["ok", "sessions"]));
    expect(await at(1).sessions.count(user)).toBe(4);
  });

  it("connections at all front doors count towards the limit of the user's group until they end", async () => {
    const user = unused("u");
    const token = await issuer.token({ sub: user, groups: ["interns", "staff"] });
    const doors = (await hosts.store.hosts.list()).map(({ door }) => door ?? "");
    const open = async (url: string) => {
      const client = await RawClient.open(url);
      const { error } = await client.request("connect", { token });
      return { client, limit: (error?.data as { limit?: string } | undefined)?.limit };
    };
    const opened = [];
    for (let index = 0; index < 5; index++) opened.push(await open(doors[index % 2] ?? ""));
    expect(opened.map(({ limit }) => limit)).toEqual([undefined, undefined, undefined, "connections", "connections"]);
    const view = await at(0).limits.get(user);
    expect(view).toMatchObject({
      groups: ["interns"],
      sources: { connections: "group:interns" },
      used: { connections: 3 },
    });
    opened[0]?.client.socket.destroy();
    await eventually("room at the other door", async () => (await open(doors[1] ?? "")).limit === undefined);
  });
});
