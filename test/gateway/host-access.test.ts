import { mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BUILTIN_TOOLS } from "../../src/config/tool-names.js";
import { knownMethods, scopeOf } from "../../src/gateway/methods.js";
import { eventually } from "../fixtures/fault-fleet.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const HOW_TO_ALLOW = '"session": {"host": "owner"}';

/** Settings by which a client could have files read or written, or programs started. */
const REACHING = {
  workingDirectory: "/",
  additionalDirectories: ["/etc"],
  configDir: "/tmp",
  mcpServers: { s: { type: "local", command: "touch", args: ["/tmp/x"], tools: ["*"] } },
  customAgents: [{ name: "a", prompt: "p", mcpServers: { s: { type: "local", command: "touch", args: [] } } }],
  skillDirectories: ["/etc"],
  pluginDirectories: ["/etc"],
  instructionDirectories: ["/etc"],
  extensionSdkPath: "/tmp/x",
  requestExtensions: true,
  enableConfigDiscovery: true,
  largeOutput: { outputDir: "/tmp" },
  sandboxConfig: { enabled: false },
  requestedEnvironmentVariables: ["PATH"],
  somethingNew: "/",
};

const REACHING_OPTIONS = {
  workingDirectory: "/",
  shell: { initProfile: "NonInteractive" },
  sandboxConfig: { enabled: false },
  skillDirectories: ["/etc"],
  installedPlugins: [{ name: "p", path: "/tmp" }],
  trajectoryFile: "/tmp/trajectory",
  eventsLogDirectory: "/tmp",
  somethingNew: "/",
};

describe("a client on its user's own server, as session.host is by default", () => {
  let at: DoorFleet;
  let client: RawClient;
  const sessionId = "mine";
  beforeAll(async () => {
    at = await DoorFleet.open({ from: 24_070, to: 24_079 });
    client = await RawClient.as(at.url, await at.token("alice"), true);
    expect(await client.request("session.create", { sessionId })).toMatchObject({ result: { sessionId } });
    await client.turn(sessionId, "hello");
  });
  afterAll(async () => {
    client.socket.destroy();
    await at[Symbol.asyncDispose]();
  });

  it("is refused every method that reaches files or programs, and learns how an operator allows it", async () => {
    const reaching = knownMethods().filter((method) => ["host", "own-host"].includes(scopeOf(method)));
    expect(reaching.length).toBeGreaterThan(100);
    for (const method of reaching) {
      const { error } = await client.request(method, { sessionId, command: "touch /tmp/x" });
      expect(error, method).toMatchObject({ code: -32003, data: { code: "FLEET_METHOD_DENIED" } });
      expect(error?.message, method).toContain(HOW_TO_ALLOW);
    }
  });

  it.each(Object.entries(REACHING))("is refused the setting %s", async (name, value) => {
    const created = await client.request("session.create", { sessionId: "never", [name]: value });
    const resumed = await client.request("session.resume", { sessionId, [name]: value });
    for (const { error } of [created, resumed]) {
      expect(error?.message).toContain(name);
      expect(error?.message).toContain(HOW_TO_ALLOW);
    }
    expect(await at.store.readSession("never")).toBeNull();
  });

  it.each(Object.entries(REACHING_OPTIONS))("is refused the option %s", async (name, value) => {
    const { error } = await client.request("session.options.update", { sessionId, [name]: value });
    expect(error?.message).toContain(name);
    expect(error?.message).toContain(HOW_TO_ALLOW);
  });

  it("has no built-in tool that the fleet does not know", async () => {
    const { result } = await client.request("session.tools.getBuiltinDescriptors", { sessionId });
    const names = (result as { tools: { name: string }[] }).tools.map(({ name }) => name);
    expect(names).toContain("bash");
    expect(names.filter((name) => !BUILTIN_TOOLS.has(name))).toEqual([]);
  });

  it("is refused attachments that are read from the disk, and may send blobs", async () => {
    const file = { type: "file", path: "/etc/hostname", displayName: "hostname" };
    for (const params of [
      { prompt: "look", attachments: [file] },
      { messages: [{ prompt: "look", attachments: [file] }] },
    ]) {
      const method = "prompt" in params ? "session.send" : "session.sendMessages";
      const { error } = await client.request(method, { sessionId, ...params });
      expect(error?.message).toContain(HOW_TO_ALLOW);
    }
    const blob = { type: "blob", data: "aGk=", mimeType: "text/plain", displayName: "hi.txt" };
    expect((await client.request("session.send", { sessionId, prompt: "look", attachments: [blob] })).error).toBe(
      undefined,
    );
    await eventually(
      "the end of the turn",
      () => client.events(sessionId).filter((t) => t === "session.idle").length > 1,
    );
  });

  it("may do what stays in the conversation and in the user's own home", async () => {
    const settings = {
      systemMessage: { mode: "append", content: "be brief" },
      organizationCustomInstructions: "be kind",
      provider: { type: "openai", baseUrl: at.model.baseUrl, wireApi: "completions" },
      model: "own-model",
      tools: [{ name: "weather", description: "w", parameters: { type: "object" } }],
      // Nothing is set by these.
      mcpServers: {},
      skillDirectories: [],
      requestExtensions: false,
    };
    expect(await client.request("session.create", { sessionId: "harmless", ...settings })).toMatchObject({
      result: {},
    });
    await client.turn("harmless", "one");
    for (const [method, params] of [
      ["sessions.fork", { sessionId: "harmless" }],
      ["session.history.rewind", { sessionId: "harmless", eventId: "none" }],
      ["session.model.setAllowedModels", { sessionId: "harmless" }],
      ["session.options.update", { sessionId: "harmless", organizationCustomInstructions: "be kinder" }],
      ["session.instructions.getSources", { sessionId: "harmless" }],
      ["sessions.getSizes", {}],
      ["plugins.list", {}],
      ["mcp.config.list", {}],
    ] as const) {
      const { error } = await client.request(method, params);
      expect(error?.data?.code, `${method}: ${error?.message}`).not.toBe("FLEET_METHOD_DENIED");
    }
  });
});

describe("a client on its user's own server with session.host owner", () => {
  let at: DoorFleet;
  let client: RawClient;
  let homes: { alice: string; bob: string };
  beforeAll(async () => {
    at = await DoorFleet.open({ from: 24_080, to: 24_089 }, { config: { session: { host: "owner" } } });
    for (const user of ["alice", "bob"]) await at.fleet.spawn(user);
    homes = { alice: (await at.serverOf("alice")).home, bob: (await at.serverOf("bob")).home };
    client = await RawClient.as(at.url, await at.token("alice"), true);
    expect(await client.request("session.create", { sessionId: "mine" })).toMatchObject({ result: {} });
  });
  afterAll(async () => {
    client.socket.destroy();
    await at[Symbol.asyncDispose]();
  });

  it("runs commands", async () => {
    const out = join(at.folder, "out");
    const asked = await client.request("session.shell.exec", { sessionId: "mine", command: `echo run > ${out}` });
    expect(asked.error).toBeUndefined();
    await eventually("what the command wrote", () => {
      try {
        return readFileSync(out, "utf8") === "run\n";
      } catch {
        return false; // not yet
      }
    });
  });

  it("keeps sessions in folders of its own home", async () => {
    const configDir = join(homes.alice, "elsewhere");
    expect(await client.request("session.create", { sessionId: "apart", configDir })).toMatchObject({ result: {} });
  });

  it("keeps none in another home, whatever path leads there", async () => {
    symlinkSync(homes.bob, join(homes.alice, "link"));
    symlinkSync(join(homes.bob, "planned"), join(homes.alice, "dangling"));
    mkdirSync(join(homes.alice, "folder"));
    for (const configDir of [
      homes.bob,
      `${homes.alice}-x`,
      `${homes.alice}/link`,
      `${homes.alice}/link/sub`,
      `${homes.alice}/dangling`,
      `${homes.alice}/dangling/sub`,
      `${homes.alice}/../x`,
      `${homes.alice}/link/../y`,
      `${homes.alice}/`,
      "folder",
      "",
      7,
      `${homes.alice}/a\0b`,
    ]) {
      for (const [method, sessionId] of [
        ["session.create", "stray"],
        ["session.resume", "mine"],
      ] as const) {
        const { error } = await client.request(method, { sessionId, configDir });
        expect(error, String(configDir)).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
        expect(error?.message).toContain('"configDir"');
      }
    }
  });
});
