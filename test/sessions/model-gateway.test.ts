import { mkdtemp, realpath, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { startScriptedModel } from "../fixtures/models/scripted-model.js";
import { startWireModel } from "../fixtures/models/wire-model.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";

const KEY = "sk-canary";
let folder: string;
beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-models-")));
});
afterAll(async () => {
  await using fleet = await openFleet({ type: "echo" });
  const servers = await fleet.servers.list();
  await fleet.servers.stop(
    servers.map(({ id }) => id),
    { force: true },
  );
  await removeFolder(folder);
});

type Provider = NonNullable<NonNullable<Parameters<typeof Fleet.open>[0]>["config"]>["provider"];

/** Opens a fleet with its own model gateway, as another process would. All these fleets share one state folder. */
async function openFleet(provider: Provider, variables: NodeJS.ProcessEnv = {}) {
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, COPILOT_OFFLINE: "true", MODEL_KEY: KEY, ...variables };
  const config = { ports: testPorts(), provider };
  return await Fleet.open({ env: { ...env, COPILOTFLEET_HOME: join(folder, "state") }, cwd: folder, config });
}

describe("the model gateway behind the real runtime", () => {
  it.each([
    ["openai", "completions", "/v1", "/v1/chat/completions", "authorization"],
    ["openai", "responses", "/v1", "/v1/responses", "authorization"],
    ["azure", "completions", "", "/openai/v1/chat/completions", "api-key"],
    ["azure", "responses", "/openai/v1", "/openai/v1/responses", "api-key"],
    ["anthropic", undefined, "", "/v1/messages", "x-api-key"],
  ] as const)(
    "a turn with a provider of type %s (%s) at %j sends the key to the service",
    async (type, wireApi, base, path, header) => {
      await using model = await startWireModel(KEY);
      const baseUrl = `${model.origin}${base}`;
      const provider = { type, baseUrl, apiKey: { env: "MODEL_KEY" }, ...(wireApi === undefined ? {} : { wireApi }) };
      await using fleet = await openFleet(provider);
      const session = await fleet.sessions.create({ user: "ann", sessionId: unused("format") });
      expect(await fleet.sessions.send(session, "ping")).toMatchObject({ text: "pong" });
      expect(model.requests.map((request) => request.path)).toEqual([path]);
      expect(String(model.requests[0]?.headers[header]).replace("Bearer ", "")).toBe(KEY);
    },
  );

  it.each(["azure", "anthropic"] as const)(
    "a service of type %s gets bearer tokens only in Authorization, even when the token changes",
    async (type) => {
      await using model = await startWireModel("entra-one");
      const file = join(folder, unused("bearer"));
      const put = async () => await writeFile(file, model.key, { mode: 0o600 });
      await put();
      await using fleet = await openFleet({ type, baseUrl: model.origin, apiKey: { file }, bearer: true });
      const session = await fleet.sessions.create({ user: "ann", sessionId: unused("bearer") });
      expect(await fleet.sessions.send(session, "ping")).toMatchObject({ text: "pong" });
      model.key = "entra-two";
      await put();
      expect(await fleet.sessions.send(session, "again")).toMatchObject({ text: "pong" });
      expect(model.requests.at(-1)?.headers.authorization).toBe("Bearer entra-two");
      for (const { headers } of model.requests) expect(headers["api-key"] ?? headers["x-api-key"]).toBeUndefined();
    },
  );

  it("a turn fails with the error of the service", async () => {
    await using model = await startWireModel("another key");
    await using fleet = await openFleet({
      type: "openai",
      baseUrl: `${model.origin}/v1`,
      apiKey: { env: "MODEL_KEY" },
    });
    const session = await fleet.sessions.create({ user: "ann", sessionId: unused("refused") });
    await expect(fleet.sessions.send(session, "ping")).rejects.toThrow(/401/);
  });

  it("servers reach the model gateway even if their environment names a proxy", async () => {
    await using model = await startWireModel(KEY);
    const proxied = { HTTPS_PROXY: "http://127.0.0.1:1" };
    await using fleet = await openFleet({ type: "echo" }, proxied);
    const session = await fleet.sessions.create({ user: "behind-proxy", sessionId: unused("proxied") });
    expect(await fleet.sessions.send(session, "ping")).toMatchObject({ text: "[turn 1] ping" });
    expect(model.requests).toEqual([]);
  });
});

describe.each(["remote", "echo"] as const)("two processes in one session (%s)", (kind) => {
  it("a turn gets its reply after another process has run a turn in the session and ended", async () => {
    await using model = await startWireModel(KEY);
    const remote = { type: "openai", baseUrl: `${model.origin}/v1`, apiKey: { env: "MODEL_KEY" } } as const;
    const open = async () => await (kind === "echo" ? openFleet({ type: "echo" }) : openFleet(remote));
    const id = unused("shared");
    await using first = await open();
    const session = await first.sessions.create({ user: "ann", sessionId: id });
    await first.sessions.send(session, "one");
    const second = await open();
    await second.sessions.use(id, "two", { user: "ann" });
    await second.close();
    expect((await first.sessions.send(session, "three")).text).toBe(kind === "echo" ? "[turn 3] three" : "pong");
  });

  it.skipIf(kind === "echo")(
    "a sub-agent of a running turn reaches its model after another process has opened the session and ended",
    async () => {
      await using model = await startScriptedModel();
      const remote = { type: "openai", baseUrl: model.baseUrl, apiKey: { env: "MODEL_KEY" } } as const;
      const id = unused("opened");
      await using first = await openFleet(remote);
      const session = await first.sessions.create({ user: "ann", sessionId: id });
      // The runtime (1.0.85) fixes a turn's provider when the turn begins, but not the provider of its sub-agents.
      const task = { description: "d", name: "n", prompt: "say hi", agent_type: "general-purpose", mode: "sync" };
      const turn = first.sessions.send(session, `!hold ${id} !tool task ${JSON.stringify(task)}`);
      await expect.poll(() => model.shown("!hold")).toBe(1);
      const second = await openFleet(remote);
      await second.sessions.resume(id, { user: "ann" });
      await second.close();
      model.letGo(id);
      expect((await turn).text).toContain("you said: say hi");
    },
  );
});
