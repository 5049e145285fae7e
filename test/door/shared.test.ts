import { join } from "node:path";
import { approveAll } from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { killed } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";
import { damageRecord } from "../fixtures/store/database.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

describe("the front door, with sessions on several shared servers,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    const config = { isolation: "shared" as const, pool: { servers: 2, strategy: "round-robin" as const } };
    at = await DoorFleet.open({ config });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const serverIdOf = async (sessionId: string) => (await at.store.sessions.read(sessionId))?.serverId;

  it("lists a client's sessions even if another user's session record cannot be read, and warns", async () => {
    const { store } = at;
    await store.sessions.create(sessionRecord("damaged", { owner: "bob" }));
    onTestFinished(async () => void (await store.sessions.delete("damaged")));
    onTestFinished(damageRecord(join(at.folder, "state"), "session", "damaged"));
    const client = await RawClient.as(at.url, await at.token("lea"));
    expect(await client.request("session.list", {})).toMatchObject({ result: { sessions: [] } });
    expect(at.fleet.takeWarnings()).toContainEqual(expect.stringMatching(/^Session "damaged" is left out, /));
  });

  it("serves one client's sessions, each with its own tools and hooks, on several shared servers", async () => {
    const client = await at.client(unused("ann"));
    onTestFinished(async () => await client.forceStop());
    const prompts: string[] = [];
    const sessions = await Promise.all(
      Array.from({ length: 4 }, async (_, index) =>
        client.createSession({
          sessionId: unused("spread"),
          onPermissionRequest: approveAll,
          hooks: { onUserPromptSubmitted: ({ prompt }) => void prompts.push(prompt) },
          tools: [
            { name: "which", description: "x", parameters: { type: "object" }, handler: async () => `tool ${index}` },
          ],
        }),
      ),
    );
    const servers = await Promise.all(sessions.map(async ({ sessionId }) => await serverIdOf(sessionId)));
    expect(new Set(servers).size).toBe(2);
    const replies = await Promise.all(
      sessions.map(async (session) => (await session.sendAndWait("!tool which {}", 20_000))?.data.content),
    );
    expect(replies).toEqual([0, 1, 2, 3].map((index) => `tool said: tool ${index}`));
    expect(prompts).toHaveLength(4);
    expect((await client.listSessions()).map(({ sessionId }) => sessionId).toSorted()).toEqual(
      sessions.map(({ sessionId }) => sessionId).toSorted(),
    );
  });

  it("loads a session on only one of several shared servers, no matter how many clients open it", async () => {
    const sessionId = unused("once");
    const loaded = async () => {
      const ids = Object.keys((await at.store.registry.read()).servers);
      const counts = await Promise.all(ids.map(async (id) => (await at.fleet.servers.get(id)).activeSessions));
      return counts.reduce((sum, active) => sum + active, 0);
    };
    await eventually("the unloading of what others left", async () => (await loaded()) === 0);
    const token = await at.token("ben");
    const first = await RawClient.as(at.url, token);
    await first.requestOk("session.create", { sessionId });
    await first.turnOk(sessionId, "one");
    const others = await Promise.all([1, 2, 3].map(async () => await RawClient.as(at.url, token)));
    for (const other of others) {
      expect(await other.request("session.resume", { sessionId })).toMatchObject({ result: {} });
      await other.turnOk(sessionId, "more");
    }
    // Shared servers have one folder of sessions, but each server counts only those that its own process has loaded.
    expect(await loaded()).toBe(1);
    await eventually(
      "the event at the first client",
      () => first.events(sessionId).filter((type) => type === "session.idle").length === 4,
    );
  });

  it("continues a session whose shared server died, and does not disturb a turn on another server", async () => {
    const [left, right] = [unused("left"), unused("right")];
    const client = await RawClient.as(at.url, await at.token("cid"));
    await client.requestOk("session.create", { sessionId: left });
    await client.requestOk("session.create", { sessionId: right });
    const leftServer = (await serverIdOf(left)) ?? "";
    expect(await serverIdOf(right)).not.toBe(leftServer);
    await client.turnOk(left, "one");
    await client.turnOk(right, "one");
    await client.requestOk("session.send", { sessionId: right, prompt: `!hold ${right}` });
    await killed((await at.fleet.servers.get(leftServer)).pid);
    expect(await client.turn(left, "two")).toMatchObject({ result: {} });
    at.model.letGo(right);
    await eventually("the end of the other turn", () =>
      JSON.stringify(client.received).includes(`you said: !hold ${right}`),
    );
    expect(client.events(right)).not.toContain("session.error");
  });
});
