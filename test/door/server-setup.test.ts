import { tmpdir } from "node:os";
import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { isRunning } from "../fixtures/processes.js";
import { OPEN_TO_CLIENTS } from "./client-suite.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const MODEL = ["llmInference.setProvider", "llmInference.httpResponseStart", "llmInference.httpResponseChunk"];
const PLUGINS = ["plugins.builtin.set", { paths: [tmpdir()] }] as const;

const denied = (...texts: string[]) => ({
  error: {
    code: -32003,
    message: expect.stringMatching(new RegExp(texts.join(".*"))),
    data: { code: "FLEET_METHOD_DENIED" },
  },
});

it("the front door sends a client no model requests that would contain the fleet's credentials", async () => {
  await using at = await DoorFleet.open({ config: { session: OPEN_TO_CLIENTS } });
  const client = await RawClient.as(at.url, await at.token("alice"));
  for (const method of MODEL)
    expect(await client.request(method, {})).toMatchObject(denied("requestHandler", "credentials"));
  await expect(at.connect(at.url, await at.token("alice"), { requestHandler: {} as never })).rejects.toThrow(
    /requestHandler/,
  );
});

it("the front door sends no model request to a client whose server was started with a GitHub token", async () => {
  const env = { ALICES_TOKEN: "gho_canary" };
  const config = { provider: null, session: OPEN_TO_CLIENTS };
  await using at = await DoorFleet.open({ env, config });
  await at.fleet.servers.spawn("alice", { token: { from: "env", name: "ALICES_TOKEN" } });
  const client = await RawClient.as(at.url, await at.token("alice"));
  for (const method of MODEL)
    expect(await client.request(method, {})).toMatchObject(denied("requestHandler", "credentials"));
});

it("a client may answer model requests if each user has their own GitHub token, but not if one token serves all users", async () => {
  const env = { TOKEN_alice: "gho_canary", TOKEN: "gho_canary" };
  for (const { name, expected } of [
    { name: "TOKEN_{user}", expected: { result: { success: true } } },
    { name: "TOKEN", expected: denied("requestHandler", "credentials") },
  ]) {
    const config = { provider: null, auth: { githubToken: { env: name } }, session: OPEN_TO_CLIENTS };
    await using at = await DoorFleet.open({ env, config });
    const client = await RawClient.as(at.url, await at.token("alice"));
    expect(await client.request("llmInference.setProvider", {}), name).toMatchObject(expected);
  }
});

it("the front door refuses a client's request handler and plugins while session.host is none", async () => {
  await using at = await DoorFleet.open({ config: { provider: null, session: { host: "none" } } });
  const client = await RawClient.as(at.url, await at.token("alice"));
  for (const method of MODEL) {
    expect(await client.request(method, {})).toMatchObject(denied("requestHandler", "session.host"));
  }
  expect(await client.request(...PLUGINS)).toMatchObject(denied("builtinPluginDirectories", "session.host"));
});

it("the front door refuses a client's request handler and plugins on a shared server", async () => {
  const config = { provider: null, isolation: "shared", session: { host: "owner" } } as const;
  await using at = await DoorFleet.open({ config });
  const client = await RawClient.as(at.url, await at.token("alice"));
  for (const method of MODEL)
    expect(await client.request(method, {})).toMatchObject(denied("requestHandler", "other users"));
  expect(await client.request(...PLUGINS)).toMatchObject(denied("builtinPluginDirectories", "other users"));
});

it("when a server dies, the front door closes only the connections of clients that had changed the server's setup", async () => {
  const config = { provider: null, session: OPEN_TO_CLIENTS };
  await using at = await DoorFleet.open({ config });
  const token = await at.token("alice");
  const [setter, plugger, other] = [
    await RawClient.as(at.url, token),
    await RawClient.as(at.url, token),
    await RawClient.as(at.url, token),
  ];
  expect((await setter.request("llmInference.setProvider", {})).result).toMatchObject({ success: true });
  expect((await plugger.request(...PLUGINS)).error).toBeUndefined();
  process.kill((await at.serverOf("alice")).pid, "SIGKILL");
  await setter.end();
  await plugger.end();
  // The server's connection to this client may end a moment later than those to the other two clients.
  const pong = await eventually("the answer of the new server", async () => {
    const answer = await other.request("ping", { message: "on" });
    return answer.error?.data?.code === "FLEET_SERVER_LOST" ? undefined : answer;
  });
  expect(pong).toMatchObject({ result: { message: "pong: on" } });
  // No client has changed the setup of the new server, so this client may change it.
  const again = await RawClient.as(at.url, token);
  await eventually(
    "the new server",
    async () => (await again.request("llmInference.setProvider", {})).error === undefined,
  );
});

it("a server ends when the client that answers its model requests leaves, and another client may then answer them", async () => {
  const config = { provider: null, session: OPEN_TO_CLIENTS };
  await using at = await DoorFleet.open({ config });
  const token = await at.token("alice");
  const open = async () => await RawClient.as(at.url, token);
  const [first, plugger, other] = [await open(), await open(), await open()];
  expect((await first.request("llmInference.setProvider", {})).result).toMatchObject({ success: true });
  expect((await plugger.request(...PLUGINS)).error).toBeUndefined();
  const { pid } = await at.serverOf("alice");
  plugger.socket.destroy();
  expect(await other.request("ping", { message: "on" })).toMatchObject({ result: { message: "pong: on" } });
  expect((await at.serverOf("alice")).pid).toBe(pid);
  first.socket.destroy();
  await eventually("the end of the server", () => !isRunning(pid));
  expect(at.events).toContainEqual(expect.objectContaining({ event: "server-ended", user: "alice" }));
  const second = await open();
  expect((await second.request("llmInference.setProvider", {})).result).toMatchObject({ success: true });
  expect(await other.request("ping", { message: "on" })).toMatchObject({ result: { message: "pong: on" } });
});
