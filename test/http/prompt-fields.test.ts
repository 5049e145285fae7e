import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { unused } from "../fixtures/sessions/unused.js";
import { TestApi } from "./harness.js";

let model: ScriptedModel;
let at: TestApi;
let token: string;
beforeAll(async () => {
  model = await startScriptedModel();
  const env = {
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    COPILOTFLEET_SESSION_MODEL: "gpt-5",
  };
  at = await TestApi.open({ env, config: { session: { tools: ["builtin:view", "builtin:grep", "builtin:glob"] } } });
  token = await at.token("alice");
});
afterAll(async () => {
  await at[Symbol.asyncDispose]();
  await model[Symbol.asyncDispose]();
});

const turn = async (id: string, body: object) => await at.ask("POST", `/v1/sessions/${id}/turns`, { token, body });

it("a prompt may have attachments with their content, and the history records their names", async () => {
  const id = unused("attached");
  await at.ok("POST", "/v1/sessions", { token, body: { id } });
  const attachments = [
    { type: "blob", data: Buffer.from("a note").toString("base64"), mimeType: "text/plain", displayName: "note.txt" },
  ];
  expect(await turn(id, { prompt: "read it.", attachments })).toMatchObject({ status: 200 });
  const { json } = await at.ok("GET", `/v1/sessions/${id}/transcript`, { token });
  expect(json.entries[0]).toMatchObject({ text: "read it.", attachments: ["note.txt"] });
});

it("a prompt is refused if an attachment is malformed or the server would read it from its disk", async () => {
  const id = unused("attached");
  await at.ok("POST", "/v1/sessions", { token, body: { id } });
  const blob = { type: "blob", data: "aGk=", mimeType: "text/plain" };
  for (const attachments of [
    [{ type: "file", path: "/etc/passwd" }],
    [{ type: "directory", path: "/etc" }],
    [{ type: "selection", filePath: "/etc/passwd", displayName: "x" }],
    [{ ...blob, data: "not base64!" }],
    [{ ...blob, mimeType: "text/plain\r\nX: y" }],
    [{ ...blob, path: "/etc/passwd" }],
    Array.from({ length: 21 }, () => blob),
    "aGk=",
  ])
    expect(await turn(id, { prompt: "hello.", attachments }), JSON.stringify(attachments)).toMatchObject({
      status: 422,
      json: { code: "FLEET_USAGE_INVALID" },
    });
});

it("a session has only the tools named at its creation, no matter who opens it later, or how", async () => {
  const id = unused("tools");
  await at.ok("POST", "/v1/sessions", { token, body: { id, tools: ["builtin:view"], members: ["bob"] } });
  await turn(id, { prompt: "first." });
  expect(model.tools()).toEqual(["view"]);
  await at.fleet.servers.stop([(await at.fleet.servers.ofUser("alice")).id], {});
  await turn(id, { prompt: "second." });
  expect(model.tools()).toEqual(["view"]);
  await at.fleet.sessions.use(id, "third.", { user: "alice" });
  expect(model.tools()).toEqual(["view"]);
  await using door = await at.fleet.doors.open({ listen: "127.0.0.1:0" });
  for (const user of ["alice", "bob"]) {
    await at.fleet.sessions.evict({ ids: [id] });
    const connection = RuntimeConnection.forUri(`127.0.0.1:${door.address.port}`, {
      connectionToken: await at.token(user),
    });
    const client = new CopilotClient({ connection });
    await client.start();
    const session = await client.resumeSession(id, { onPermissionRequest: () => ({ kind: "no-result" }) });
    await session.sendAndWait(`of ${user}.`, 30_000);
    expect(model.tools(), user).toEqual(["view"]);
    await client.stop();
  }
});

it("a session gets no tool that the configuration does not allow", async () => {
  const denied = await at.ask("POST", "/v1/sessions", { token, body: { tools: ["builtin:view", "builtin:bash"] } });
  expect(denied).toMatchObject({ status: 422, json: { code: "FLEET_USAGE_INVALID" } });
  expect(denied.json.detail).toContain("builtin:bash");
  const id = unused("tools");
  await at.ok("POST", "/v1/sessions", { token, body: { id, tools: [] } });
  await turn(id, { prompt: "none." });
  expect(model.tools()).toEqual([]);
});
