import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "./harness.js";

let at: TestApi;
let token: string;
let admin: string;
beforeAll(async () => {
  at = await TestApi.open({ config: { session: { maxActive: 2 } } });
  token = await at.token("alice");
  admin = await at.token("root", ["admin"]);
});
afterAll(async () => await at[Symbol.asyncDispose]());

async function session(more: object = {}): Promise<string> {
  const id = unused("kept");
  await at.ok("POST", "/v1/sessions", { token, body: { id, ...more } });
  return id;
}

const say = async (id: string, prompt: string, by = token) =>
  (await at.ok("POST", `/v1/sessions/${id}/turns`, { token: by, body: { prompt } })).json.reply as string;

/** How often the session was loaded after its creation. */
async function loads(id: string): Promise<number> {
  let count = 0;
  for await (const { type } of at.fleet.sessions.followEvents(id, { user: "alice" }))
    if (type === "session.resume") count++;
  return count;
}

describe("a session after a turn over HTTP", () => {
  it("a session stays open after a turn over HTTP, so that its next turns do not load it again", async () => {
    const id = await session();
    expect(await say(id, "one")).toBe("[turn 1] one");
    const before = await loads(id);
    expect(await say(id, "two")).toBe("[turn 2] two");
    expect(await say(id, "three")).toBe("[turn 3] three");
    expect(await loads(id)).toBe(before);
  });

  it("an open session is loaded again for a turn that brings its own settings, such as a GitHub token", async () => {
    const id = await session();
    await say(id, "one");
    const before = await loads(id);
    await at.fleet.sessions.use(id, "two", { user: "alice", session: { streaming: false } });
    expect(await loads(id)).toBe(before + 1);
    expect(await say(id, "three")).toBe("[turn 3] three");
  });

  it("open sessions are evicted to stay within session.maxActive, and continue at their next use", async () => {
    const ids = [await session(), await session(), await session()];
    for (const id of ids) await say(id, "one");
    for (const id of ids) expect(await say(id, "two"), id).toBe("[turn 2] two");
    const loaded = (await at.fleet.sessions.list({ user: "alice" })).filter(({ state }) => state === "active");
    expect(loaded.length).toBeLessThanOrEqual(2);
    const [, , id = ""] = ids;
    expect(await at.fleet.sessions.evict({ ids: [id] })).toEqual({ evicted: [id], skipped: [] });
    expect(await say(id, "three")).toBe("[turn 3] three");
  });

  it("an open session does not prevent a stop or restart of its server, and continues afterwards", async () => {
    const id = await session();
    await say(id, "one");
    const { id: server } = await at.fleet.servers.ofUser("alice");
    const { json } = await at.ok("POST", `/v1/servers/${server}/stop`, { token: admin });
    expect(json).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
    expect(await say(id, "two")).toBe("[turn 2] two");
    await at.ok("POST", `/v1/servers/${server}/restart`, { token: admin });
    expect(await say(id, "three")).toBe("[turn 3] three");
  });

  it("an open session continues after its server was killed", async () => {
    const id = await session();
    await say(id, "one");
    const { pid } = await at.fleet.servers.ofUser("alice");
    process.kill(pid ?? 0, "SIGKILL");
    expect(await say(id, "two")).toBe("[turn 2] two");
  });

  it("an open session can be deleted, and a new session with its id begins with an empty history", async () => {
    const id = await session();
    await say(id, "one");
    await at.ok("DELETE", `/v1/sessions/${id}`, { token });
    expect(await at.ask("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "two" } })).toMatchObject({
      status: 404,
    });
    await at.ok("POST", "/v1/sessions", { token, body: { id } });
    expect(await say(id, "new")).toBe("[turn 1] new");
    // Another fleet deletes the session, as another process would.
    await using other = await Fleet.open({ env: at.commands.env, cwd: at.commands.folder });
    await other.sessions.delete([id]);
    await at.ok("POST", "/v1/sessions", { token, body: { id } });
    expect(await say(id, "newer")).toBe("[turn 1] newer");
  });

  it("an open session replies to each member, and refuses a member who was removed", async () => {
    const bob = await at.token("bob");
    const id = await session({ members: ["bob"] });
    expect(await say(id, "of alice")).toBe("[turn 1] of alice");
    expect(await say(id, "of bob", bob)).toBe("[turn 2] of bob");
    expect(await say(id, "more of bob", bob)).toBe("[turn 3] more of bob");
    expect(await say(id, "of alice again")).toBe("[turn 4] of alice again");
    await say(id, "of bob", bob);
    await at.ok("PATCH", `/v1/sessions/${id}`, { token, body: { members: [] } });
    const refused = await at.ask("POST", `/v1/sessions/${id}/turns`, { token: bob, body: { prompt: "out" } });
    expect(refused.status).toBe(404);
    expect(await say(id, "alone")).toBe("[turn 6] alone");
  });

  it("HTTP, another process and the library can use an open session alternately", async () => {
    const id = await session();
    await say(id, "one");
    await using other = await Fleet.open({ env: at.commands.env, cwd: at.commands.folder });
    expect((await other.sessions.use(id, "two", { user: "alice" })).text).toBe("[turn 2] two");
    expect(await say(id, "three")).toBe("[turn 3] three");
    const open = await at.fleet.sessions.resume(id, { user: "alice" });
    expect((await at.fleet.sessions.send(open, "four")).text).toBe("[turn 4] four");
    await at.fleet.sessions.leave(open);
    const both = await Promise.all([say(id, "five"), say(id, "six")]);
    expect(both.map((reply) => reply.replace(/\d/, "N"))).toEqual(["[turn N] five", "[turn N] six"]);
  });
});
