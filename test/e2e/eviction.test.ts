import { describe, expect, it, vi } from "vitest";
import { Fleet } from "../../src/index.js";
import type { EvictionResult } from "../../src/sessions/eviction.js";
import { PORTS, testFleet } from "../fixtures/cli.js";
import { startHeldModel } from "../fixtures/held-model.js";

/** Polls until `condition` holds, for 20 s at most. */
const until = async (condition: () => Promise<boolean>) => {
  await vi.waitFor(async () => expect(await condition()).toBe(true), { timeout: 20_000, interval: 20 });
};

const fleet = testFleet(PORTS.eviction);
const CAP = { COPILOTFLEET_SESSION_MAX_ACTIVE: "2" };

const active = async (user: string) => {
  const { sessions } = await fleet.json<{ sessions: { id: string }[] }>(["list", "--user", user, "--state", "active"]);
  return sessions.map(({ id }) => id).toSorted();
};

describe("at the cap", () => {
  it("the least recently used idle session is unloaded, and its next turn loads it again", async () => {
    await using library = await Fleet.open({ env: { ...fleet.env, ...CAP }, cwd: fleet.folder });
    const sessions = [];
    for (const id of ["a", "b", "c"]) {
      const session = await library.createSession({ user: "lru", sessionId: id });
      sessions.push(session);
      await library.send(session, `I am ${id}`);
    }
    expect(await active("lru")).toEqual(["b", "c"]);
    const [first] = sessions;
    if (first === undefined) throw new Error("no session");
    const heard: string[] = [];
    first.on("assistant.message", (event) => void heard.push(event.data.content));
    expect((await library.send(first, "still here?")).text).toBe("[turn 2] still here?");
    expect((await first.sendAndWait("and again?"))?.data.content).toBe("[turn 3] and again?");
    // Who listened before the session was unloaded goes on hearing.
    expect(heard).toEqual(["[turn 2] still here?", "[turn 3] and again?"]);
    expect(await active("lru")).toEqual(["a", "c"]);
  });

  it("sessions in a turn stay, and the caller waits or is told the limit", async () => {
    await using model = await startHeldModel();
    await using library = await Fleet.open({ env: { ...fleet.env, ...CAP, ...model.env }, cwd: fleet.folder });
    const busy = await Promise.all(["x", "y"].map((id) => library.createSession({ user: "busy", sessionId: id })));
    const turns = busy.map((session) => library.send(session, "!hold working"));
    await until(async () => model.held() === 2);
    const refused = await fleet.refusal(6, ["create", "--user", "busy", "--wait", "100ms"], { env: CAP });
    expect(refused).toMatchObject({ code: "FLEET_SESSIONS_EXHAUSTED", message: expect.stringContaining("2 sessions") });
    const waited = fleet.ok(["create", "--user", "busy", "--id", "z", "--prompt", "mine"], { env: CAP });
    // As long as another command takes: by then that one waits.
    expect(await active("busy")).toEqual(["x", "y"]);
    model.release();
    for (const turn of turns) expect((await turn).text).toBe("[turn 1] working");
    expect(await waited).toBe("z\n[turn 1] mine\n");
  });

  it("is never passed, however many come at once", async () => {
    const library = await Fleet.open({
      env: { ...fleet.env, COPILOTFLEET_SESSION_MAX_ACTIVE: "3" },
      cwd: fleet.folder,
    });
    await library.spawn("crowd");
    let most = 0;
    let done = false;
    const watch = (async () => {
      while (!done) {
        most = Math.max(most, (await library.serverOf("crowd")).activeSessions);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
    })();
    await Promise.all(
      Array.from({ length: 12 }, async (_, index) => {
        const session = await library.createSession({ user: "crowd", sessionId: `s${index}` });
        expect((await library.send(session, "hi")).text).toBe("[turn 1] hi");
      }),
    );
    done = true;
    await watch;
    expect(most).toBeGreaterThan(0);
    expect(most).toBeLessThanOrEqual(3);
    await library.close();
  });
});

describe("evict", () => {
  it("unloads from any process what is idle, and says why it leaves the rest", async () => {
    await using model = await startHeldModel();
    const library = await Fleet.open({ env: { ...fleet.env, ...model.env }, cwd: fleet.folder });
    const [idle, busy, leased] = await Promise.all(
      ["idle", "in-turn", "leased"].map((id) => library.createSession({ user: "eve", sessionId: id })),
    );
    if (idle === undefined || busy === undefined || leased === undefined) throw new Error("no sessions");
    for (const session of [idle, leased]) await library.send(session, "hi");
    await fleet.ok(["lock", "leased", "--user", "eve"]);
    const turn = library.send(busy, "!hold x");
    await until(async () => {
      const { skipped } = await fleet.json<EvictionResult>(["evict", "in-turn"]);
      return skipped.some(({ reason }) => reason === "in a turn" || reason === "in use");
    });
    const ran = await fleet.run(["evict", "idle", "leased", "nowhere", "--json"]);
    expect(ran.code).toBe(4);
    expect(ran.json()).toMatchObject({
      evicted: ["idle"],
      skipped: [
        { id: "leased", reason: "leased" },
        { id: "nowhere", reason: "not found" },
      ],
    });
    model.release();
    expect((await turn).text).toBe("[turn 1] x");
    expect((await fleet.json<EvictionResult>(["evict", "--max", "1"])).evicted).toContain("in-turn");
    expect(await active("eve")).toEqual(["leased"]);
    await library.close();
  });

  it("refuses nonsense", async () => {
    expect((await fleet.refusal(2, ["evict"])).message).toContain("--max");
    expect((await fleet.refusal(2, ["evict", "x", "--max", "1"])).message).toContain("--max");
    expect((await fleet.refusal(2, ["evict", "../x"])).message).toContain('"../x"');
    expect((await fleet.refusal(2, ["evict", "--max", "-1"])).message).toContain("--max");
  });
});
