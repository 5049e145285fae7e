import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { unloadAtOnce } from "../../src/servers/stop.js";
import { setUseMarker } from "../../src/servers/use-markers.js";
import { eventually } from "../fixtures/eventually.js";
import { historyFiles, readHistory } from "../fixtures/sessions/session-history.js";
import { unused } from "../fixtures/sessions/unused.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const NO_WAIT = { waitMs: 0, signal: undefined };

/** Two shared servers with round-robin placement, so that sessions change servers all the time. */
describe("the fleet, when a lease's holder takes a session to another shared server,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    const config = { isolation: "shared", pool: { servers: 2, strategy: "round-robin" } };
    at = await DoorFleet.open({ config });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const team = async () => {
    const sessionId = unused("moved");
    const session = await at.fleet.sessions.create({ user: "ann", members: ["ben"], sessionId });
    await at.fleet.sessions.send(session, "first");
    await at.fleet.sessions.leave(session);
    return sessionId;
  };
  const serverIdOf = async (sessionId: string) => (await at.store.sessions.read(sessionId))?.serverId;
  const serverOf = async (sessionId: string) => {
    const server = (await at.store.registry.read()).servers[(await serverIdOf(sessionId)) ?? ""];
    if (server === undefined) throw new Error(`session ${sessionId} is on no server`);
    return server;
  };
  /** Runs turns until the session is on another server. */
  const move = async (sessionId: string, lease?: Awaited<ReturnType<typeof at.fleet.leases.acquire>>) => {
    const before = await serverIdOf(sessionId);
    await eventually("the session is on another server", async () => {
      await at.fleet.sessions.use(sessionId, "on", { user: "ann", ...(lease === undefined ? {} : { lease }) });
      return (await serverIdOf(sessionId)) !== before;
    });
  };
  /** Returns how many requests wait for the lease: an extra request learns how many are ahead of it. */
  const waiters = async (sessionId: string): Promise<number> => {
    const asked = { sessionId, holder: "ann", token: "who asks", ttlMs: 1_000, placeMs: 1_000 };
    const answer = await at.store.leases.acquire(asked);
    await at.store.leases.leave(sessionId, asked.token);
    return answer.granted ? 0 : answer.ahead;
  };
  const prompts = async (sessionId: string) => {
    const [path = "", ...others] = historyFiles(at.folder, sessionId);
    expect(others, "copies of the history").toEqual([]);
    const { forks, lost, torn, turns } = readHistory(path);
    expect({ forks, lost, torn }).toEqual({ forks: [], lost: [], torn: 0 });
    for (const { prompt, reply } of turns) expect(reply).toContain(prompt);
    return turns.map(({ prompt }) => prompt);
  };

  it("runs another member's waiting prompt on the session's new server", async () => {
    const id = await team();
    const before = await serverIdOf(id);
    const lease = await at.fleet.leases.acquire(id, { user: "ann" });
    const waiting = at.fleet.sessions.use(id, "mine", { user: "ben" });
    await eventually("ben waits", async () => (await waiters(id)) === 1);
    await move(id, lease);
    expect((await at.fleet.servers.route("ben")).serverId).toBe(before);
    const behind = at.fleet.sessions.use(id, "after", { user: "ann" });
    await eventually("ann waits behind ben", async () => (await waiters(id)) === 2);
    await lease.release();
    expect((await waiting).text).toContain("mine");
    expect((await behind).text).toContain("after");
    expect((await prompts(id)).slice(-2)).toEqual(["mine", "after"]);
  });

  it("keeps a session on its server while another process has a use marker on the session", async () => {
    const id = await team();
    const before = await serverOf(id);
    const lease = await at.fleet.leases.acquire(id, { user: "ann" });
    {
      using _used = await setUseMarker(before, id, NO_WAIT);
      // A refused turn must not ask for a placement, because round-robin would then place the next user differently.
      const next = (await at.fleet.servers.route("cid")).serverId;
      // Try two turns. Without the use marker, round-robin placement would send one of them to the other server.
      const waits = { user: "ann", lease, waitMs: 300 };
      for (const prompt of ["a", "b"]) {
        await expect(at.fleet.sessions.use(id, prompt, waits)).rejects.toMatchObject({ code: "FLEET_SESSION_BUSY" });
        expect(await serverIdOf(id)).toBe(before.id);
        expect((await at.fleet.servers.route("cid")).serverId).toBe(next);
      }
    }
    await move(id, lease);
    await lease.release();
    expect(await prompts(id)).not.toContain("a");
  });

  it("continues a moved session for a library user and for a client that had opened the session before the move", async () => {
    const id = await team();
    const mine = await at.fleet.sessions.resume(id, { user: "ann" });
    const client = await RawClient.as(at.url, await at.token("ben"));
    expect((await client.request("session.resume", { sessionId: id })).error).toBeUndefined();
    await at.fleet.sessions.evict({ ids: [id] });
    await move(id);
    expect((await at.fleet.sessions.send(mine, "by the library")).text).toContain("by the library");
    expect((await client.turn(id, "at the front door")).error).toBeUndefined();
    await at.fleet.sessions.leave(mine);
    expect((await prompts(id)).slice(-2)).toEqual(["by the library", "at the front door"]);
    expect(client.events(id)).toContain("assistant.message");
  });

  it("runs a client's waiting prompt at the front door after the lease's holder has moved the session", async () => {
    const id = await team();
    const client = await RawClient.as(at.url, await at.token("ben"));
    expect((await client.request("session.resume", { sessionId: id })).error).toBeUndefined();
    const lease = await at.fleet.leases.acquire(id, { user: "ann" });
    const turn = client.turn(id, "mine");
    await eventually("ben waits", async () => (await waiters(id)) === 1);
    // Unload the session regardless of the lease, as the server does with an idle session.
    await unloadAtOnce(await serverOf(id), [id], 20_000);
    await move(id, lease);
    await lease.release();
    expect((await turn).error).toBeUndefined();
    expect((await prompts(id)).at(-1)).toBe("mine");
  });
});
