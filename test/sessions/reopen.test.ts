import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Tool } from "@github/copilot-sdk";
import { afterAll, beforeAll, expect, it } from "vitest";
import { NEVER } from "../../src/base/clock.js";
import { Fleet } from "../../src/fleet/fleet.js";
import { type FleetParts, openParts } from "../../src/fleet/parts.js";
import type { Transport } from "../../src/sessions/use/load.js";
import { useSession } from "../../src/sessions/use/use-session.js";
import { recordFor } from "../../src/sessions/view.js";
import { eventually } from "../fixtures/eventually.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { killed } from "../fixtures/processes.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";

let folder: string;
let parts: FleetParts;
beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-reopen-")));
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, COPILOT_OFFLINE: "true", COPILOTFLEET_HOME: folder };
  parts = openParts({ env, cwd: folder, config: { ports: testPorts(), provider: { type: "echo" } } });
});
afterAll(async () => {
  const ids = (await parts.pool.all()).map(({ id }) => id);
  await parts.pool.stopAll(ids, { drainTimeoutMs: 0, force: true, signal: NEVER });
  await parts.close();
  await removeFolder(folder);
});

/** A turn of `ann` in a new session that nobody has open. */
async function turnIn(id: string) {
  await parts.open.create({ user: "ann", id, signal: NEVER });
  await parts.open.leave(id, { park: true });
  const record = await recordFor(parts, id, "ann");
  return await useSession(parts.sessions.context, { record, user: "ann", isTurn: true });
}

it("a running turn can load its session again on a draining server, because the drain waits for the turn", async () => {
  const use = await turnIn(unused("drained"));
  await parts.store.registry.update((registry) => {
    const server = registry.servers[use.server.id];
    if (server !== undefined) server.state = "draining";
  });
  try {
    const loaded: Transport<string> = { load: async ({ server }) => server.id };
    expect(await use.reopen(loaded)).toBe(use.server.id);
  } finally {
    await use.end();
    await parts.store.registry.update((registry) => {
      const server = registry.servers[use.server.id];
      if (server !== undefined) server.state = "ready";
    });
  }
});

it("when a running turn's server dies, the turn reloads its session before the next waiting turn can begin", async () => {
  const id = unused("first");
  const use = await turnIn(id);
  const { record, server } = use;
  let hasBegun = false;
  const waiting = useSession(parts.sessions.context, { record, user: "ann", isTurn: true }).then((next) => {
    hasBegun = true;
    return next;
  });
  await eventually("the lease of the turn that waits", async () => (await parts.store.leases.read(id)) !== null);
  await killed(server.process?.pid ?? null);
  const loaded: Transport<string> = { load: async (on) => on.server.id };
  expect(await use.reopen(loaded)).toBe(server.id);
  expect(use.lease).toBeUndefined();
  expect(hasBegun).toBe(false);
  expect(await use.end()).toBeNull();
  await (await waiting).end();
});

it("a turn begins at once on a server recorded as draining if the process that was draining it has died", async () => {
  const before = await turnIn(unused("left"));
  const { record, server } = before;
  await before.end();
  await parts.store.registry.update(({ servers }) => {
    const recorded = servers[server.id];
    if (recorded !== undefined) recorded.state = "draining";
  });
  const request = { record, user: "ann", isTurn: true, at: server, waitMs: 30_000 };
  const use = await useSession(parts.sessions.context, request);
  expect(use.server).toMatchObject({ id: server.id, process: server.process });
  await use.end();
});

let model: ScriptedModel;
let fleet: Fleet;
beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-open-")));
  model = await startScriptedModel();
  fleet = await Fleet.open({
    env: { PATH: process.env.PATH, HOME: process.env.HOME, COPILOT_OFFLINE: "true", COPILOTFLEET_HOME: folder },
    cwd: folder,
    config: {
      ports: testPorts(),
      provider: { type: "openai", baseUrl: model.baseUrl, wireApi: "completions" },
      session: { model: "m", approve: "all" },
      sandbox: { mode: "none" },
    },
  });
});
afterAll(async () => {
  const servers = await fleet.servers.list();
  await fleet.servers.stop(
    servers.map(({ id }) => id),
    { force: true },
  );
  await fleet.close();
  await model[Symbol.asyncDispose]();
  await removeFolder(folder);
});

/** A tool that runs in this process and answers with `name`. */
const whoAmI = (name: string): Tool => ({
  name: "who_am_i",
  description: "Tells whose tool runs.",
  parameters: { type: "object", properties: {} },
  handler: () => name,
});

it("a session object keeps its own options when another user opens the session and the server reloads it", async () => {
  const members = ["ben"];
  const id = unused("both");
  const ann = await fleet.sessions.create({ user: "ann", sessionId: id, members, tools: [whoAmI("ann's")] });
  await ann.sendAndWait("first");
  await fleet.sessions.resume(id, { user: "ben", tools: [whoAmI("ben's")] });
  expect(await fleet.sessions.evict({ ids: [id] })).toMatchObject({ evicted: [id] });
  const reply = await ann.sendAndWait("!tool who_am_i {}");
  expect(reply?.data.content).toContain("ann's");
});

it("after a session's server was killed, the listeners of the session object get the events of the next turn", async () => {
  const session = await fleet.sessions.create({ user: "cleo", sessionId: unused("listened") });
  const all: string[] = [];
  const replies: string[] = [];
  session.on(({ type }) => void all.push(type));
  const stop = session.on("assistant.message", ({ data }) => void replies.push(data.content));
  await session.sendAndWait("first");
  const server = (await fleet.servers.list()).find(({ user }) => user === "cleo");
  await killed(server?.pid ?? null);
  all.length = 0;
  await session.sendAndWait("second");
  expect(replies).toEqual(["you said: first", "you said: second"]);
  expect(all).toContain("session.idle");
  const late: string[] = [];
  session.on("assistant.message", ({ data }) => void late.push(data.content));
  stop();
  await session.sendAndWait("third");
  expect(late).toEqual(["you said: third"]);
  expect(replies).toEqual(["you said: first", "you said: second"]);
});
