import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Tool } from "@github/copilot-sdk";
import { afterAll, beforeAll, expect, it } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { killed } from "../fixtures/processes.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";

let folder: string;
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
