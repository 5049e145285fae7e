import { describe, expect, it, vi } from "vitest";
import { Fleet } from "../../src/index.js";
import type { EvictionResult } from "../../src/sessions/memory/eviction.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { unused } from "../fixtures/sessions/unused.js";

/** Polls until `condition` holds, for 20 s at most. */
const until = async (condition: () => Promise<boolean>) => {
  await vi.waitFor(async () => expect(await condition()).toBe(true), { timeout: 20_000, interval: 20 });
};

// Allow long answer times, because a server on a busy machine takes long to answer.
const fleet = testFleet({ COPILOTFLEET_HEALTH_TIMEOUT: "1m", COPILOTFLEET_HEALTH_INTERVAL: "1m" });
const CAP = { COPILOTFLEET_SESSION_MAX_ACTIVE: "2" };

const active = async (user: string) => {
  const { sessions } = await fleet.json<{ sessions: { id: string }[] }>(["list", "--user", user, "--state", "active"]);
  return sessions.map(({ id }) => id).toSorted();
};

describe("the cap on loaded sessions", () => {
  it("at session.maxActive, the least recently used idle session is unloaded, and its next turn loads it again", async () => {
    await using library = await Fleet.open({ env: { ...fleet.env, ...CAP }, cwd: fleet.folder });
    const user = unused("lru");
    const [a, b, c] = [unused("a"), unused("b"), unused("c")];
    const sessions = [];
    for (const id of [a, b, c]) {
      const session = await library.sessions.create({ user, sessionId: id });
      sessions.push(session);
      await library.sessions.send(session, `I am ${id}`);
    }
    expect(await active(user)).toEqual([b, c]);
    const [first] = sessions;
    if (first === undefined) throw new Error("no session");
    const heard: string[] = [];
    first.on("assistant.message", (event) => void heard.push(event.data.content));
    expect((await library.sessions.send(first, "still here?")).text).toBe("[turn 2] still here?");
    expect((await first.sendAndWait("and again?"))?.data.content).toBe("[turn 3] and again?");
    // A listener that was added before the session was unloaded still receives the session's events.
    expect(heard).toEqual(["[turn 2] still here?", "[turn 3] and again?"]);
    expect(await active(user)).toEqual([a, c]);
  });

  it("if session.maxActive sessions are in a turn, create waits up to --wait, and then its error names the limit", async () => {
    await using model = await startHeldModel();
    await using library = await Fleet.open({ env: { ...fleet.env, ...CAP, ...model.env }, cwd: fleet.folder });
    const user = unused("busy");
    const [x, y, z] = [unused("x"), unused("y"), unused("z")];
    const busy = await Promise.all([x, y].map((sessionId) => library.sessions.create({ user, sessionId })));
    const turns = busy.map((session) => library.sessions.send(session, "!hold working"));
    await until(async () => model.held() === 2);
    const refused = await fleet.refusal(6, ["create", "--user", user, "--wait", "100ms"], { env: CAP });
    expect(refused).toMatchObject({
      code: "FLEET_LIMIT_REACHED",
      limit: "session.maxActive",
      message: expect.stringContaining("2 sessions"),
    });
    const waited = fleet.ok(["create", "--user", user, "--id", z, "--prompt", "mine"], { env: CAP });
    // active() runs another command. By the time that command ends, the create above is already waiting.
    expect(await active(user)).toEqual([x, y]);
    model.release();
    for (const turn of turns) expect((await turn).text).toBe("[turn 1] working");
    expect(await waited).toBe(`${z}\n[turn 1] mine\n`);
  });

  it("no server loads more than session.maxActive sessions while 12 sessions are created and used at the same time", async () => {
    await using library = await Fleet.open({
      env: { ...fleet.env, COPILOTFLEET_SESSION_MAX_ACTIVE: "3" },
      cwd: fleet.folder,
    });
    const user = unused("crowd");
    await library.servers.spawn(user);
    let most = 0;
    let done = false;
    const watch = (async () => {
      while (!done) {
        most = Math.max(most, (await library.servers.ofUser(user)).activeSessions);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
    })();
    const use = async () => {
      const wait = "3m"; // on a busy machine, it takes longer than the default wait until a session can be unloaded
      const session = await library.sessions.create({ user, sessionId: unused("s"), wait });
      expect((await library.sessions.send(session, "hi", { wait })).text).toBe("[turn 1] hi");
    };
    await Promise.all(Array.from({ length: 12 }, use)).finally(() => (done = true));
    await watch;
    expect(most).toBeGreaterThan(0);
    expect(most).toBeLessThanOrEqual(3);
  });
});

describe("evict", () => {
  it("evict unloads idle sessions of another process, and reports why it keeps leased and busy sessions", async () => {
    await using model = await startHeldModel();
    await using library = await Fleet.open({ env: { ...fleet.env, ...model.env }, cwd: fleet.folder });
    const user = unused("eve");
    const ids = { idle: unused("idle"), busy: unused("in-turn"), leased: unused("leased") };
    const [idle, busy, leased] = await Promise.all(
      Object.values(ids).map((sessionId) => library.sessions.create({ user, sessionId })),
    );
    if (idle === undefined || busy === undefined || leased === undefined) throw new Error("no sessions");
    for (const session of [idle, leased]) await library.sessions.send(session, "hi");
    await fleet.ok(["lock", ids.leased, "--user", user]);
    const turn = library.sessions.send(busy, "!hold x");
    await until(async () => model.held() === 1);
    const { skipped } = await fleet.json<EvictionResult>(["evict", ids.busy]);
    expect(["in a turn", "in use"]).toContain(skipped[0]?.reason);
    const ran = await fleet.run(["evict", ids.idle, ids.leased, "nowhere", "--json"]);
    expect(ran.code).toBe(4);
    expect(ran.json()).toMatchObject({
      evicted: [ids.idle],
      skipped: [
        { id: ids.leased, reason: "leased" },
        { id: "nowhere", reason: "not found" },
      ],
    });
    model.release();
    expect((await turn).text).toBe("[turn 1] x");
    expect((await fleet.json<EvictionResult>(["evict", "--max", "1"])).evicted).toContain(ids.busy);
    expect(await active(user)).toEqual([ids.leased]);
  });

  it("evict --max does not read standard input, so that a shell loop around it keeps its input", async () => {
    const { evicted } = await fleet.json<EvictionResult>(["evict", "--max", "1000"], { input: "not-a-session\n" });
    expect(evicted).toEqual([]);
  });

  it("evict refuses a call without arguments, ids together with --max, an invalid id and a negative --max", async () => {
    expect((await fleet.refusal(2, ["evict"])).message).toContain("--max");
    expect((await fleet.refusal(2, ["evict", "x", "--max", "1"])).message).toContain("--max");
    expect((await fleet.refusal(2, ["evict", "../x"])).message).toContain('"../x"');
    expect((await fleet.refusal(2, ["evict", "--max", "-1"])).message).toContain("--max");
  });
});
