import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BUILTIN_TOOLS } from "../../src/base/values/names.js";
import { handlingOf, knownMethods } from "../../src/door/policy/methods.js";
import { eventually } from "../fixtures/eventually.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { unused } from "../fixtures/sessions/unused.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

const HOW_TO_ALLOW = '"session": {"host": "owner"}';

/** Settings with which a client could make the server read or write files, or start programs. */
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

describe("the front door, for a client on its user's own server with session.host none,", () => {
  let at: DoorFleet;
  let client: RawClient;
  const sessionId = "mine";
  beforeAll(async () => {
    at = await DoorFleet.open();
    client = await RawClient.as(at.url, await at.token("alice"), true);
    expect(await client.request("session.create", { sessionId })).toMatchObject({ result: { sessionId } });
    await client.turnOk(sessionId, "hello");
  });
  afterAll(async () => {
    client.socket.destroy();
    await at[Symbol.asyncDispose]();
  });

  it("starts no hook of a file in the working folder, even if the client asks for such hooks", async () => {
    const { home } = await at.serverOf("alice");
    const hook = { type: "command", bash: `touch ${join(home, "hooked")}` };
    mkdirSync(join(home, ".github", "hooks"), { recursive: true });
    const content = JSON.stringify({ version: 1, hooks: { sessionStart: [hook] } });
    writeFileSync(join(home, ".github", "hooks", "planted.json"), content);
    await client.request("session.create", { sessionId: "hooked", enableFileHooks: true });
    await client.turnOk("hooked", "hello");
    expect(readdirSync(home)).not.toContain("hooked");
  });

  it("refuses a client every method that reaches files or programs, and names the setting that allows it", async () => {
    const reaching = knownMethods().filter((method) => handlingOf(method).host === true);
    expect(reaching.length).toBeGreaterThan(100);
    for (const method of reaching) {
      const { error } = await client.request(method, { sessionId, command: "touch /tmp/x" });
      expect(error, method).toMatchObject({ code: -32003, data: { code: "FLEET_METHOD_DENIED" } });
      expect(error?.message, method).toContain(HOW_TO_ALLOW);
    }
  });

  it.each(Object.entries(REACHING))("refuses a client the session setting %s by default", async (name, value) => {
    const created = await client.request("session.create", { sessionId: "never", [name]: value });
    const resumed = await client.request("session.resume", { sessionId, [name]: value });
    for (const { error } of [created, resumed]) {
      expect(error?.message).toContain(name);
      expect(error?.message).toContain(HOW_TO_ALLOW);
    }
    expect(await at.store.sessions.read("never")).toBeNull();
  });

  it("accepts the settings that the Rust and Go SDKs send in session.create, and remoteSession off", async () => {
    const settings = { mcpOauthTokenStorage: "in-memory", skipCustomInstructions: true, coauthorEnabled: true };
    await client.requestOk("session.create", { sessionId: "of-other-sdks", ...settings, remoteSession: "off" });
    const { error } = await client.request("session.create", { sessionId: "never", remoteSession: "on" });
    expect(error?.message).toContain("control the session past the front door");
  });

  it("answers the methods of remote control that it is off, and agentRegistry.spawn like a closed gate", async () => {
    const status = await client.requestOk("sessions.getRemoteControlStatus", {});
    expect(JSON.stringify(status)).toContain("off");
    const steering = await client.requestOk("sessions.setRemoteControlSteering", { enabled: true });
    const stopped = await client.requestOk("sessions.stopRemoteControl", {});
    for (const answer of [steering, stopped]) expect(JSON.stringify(answer)).toContain("off");
    const { error } = await client.request("agentRegistry.spawn", { cwd: "/tmp" });
    expect(error).toMatchObject({ code: -32601 });
  });

  it("lets a client leave its session with sessions.releaseLock", async () => {
    await client.requestOk("session.create", { sessionId: "released" });
    await client.requestOk("sessions.releaseLock", { sessionId: "released" });
  });

  it.each(Object.entries(REACHING_OPTIONS))(
    "refuses a client the update of the session option %s by default",
    async (name, value) => {
      const { error } = await client.request("session.options.update", { sessionId, [name]: value });
      expect(error?.message).toContain(name);
      expect(error?.message).toContain(HOW_TO_ALLOW);
    },
  );

  it("gives a session no built-in tool that the fleet does not know", async () => {
    const { result } = await client.request("session.tools.getBuiltinDescriptors", { sessionId });
    const names = (result as { tools: { name: string }[] }).tools.map(({ name }) => name);
    expect(names).toContain("bash");
    expect(names.filter((name) => !BUILTIN_TOOLS.has(name))).toEqual([]);
  });

  it("refuses a client's attachments that the server would read from the disk, and accepts blobs", async () => {
    const file = { type: "file", path: "/etc/hostname", displayName: "hostname" };
    for (const params of [
      { prompt: "look", attachments: [file] },
      { messages: [{ prompt: "look", attachments: [file] }] },
    ]) {
      const method = "prompt" in params ? "session.send" : "session.sendMessages";
      const { error } = await client.request(method, { sessionId, ...params });
      expect(error?.message).toContain(HOW_TO_ALLOW);
    }
    const idles = () => client.events(sessionId).filter((type) => type === "session.idle").length;
    const before = idles();
    const blob = { type: "blob", data: "aGk=", mimeType: "text/plain", displayName: "hi.txt" };
    expect((await client.request("session.send", { sessionId, prompt: "look", attachments: [blob] })).error).toBe(
      undefined,
    );
    await eventually("the end of the turn", () => idles() > before);
  });

  it("allows a client settings and methods that affect only the conversation and the user's home", async () => {
    const harmless = unused("harmless");
    const settings = {
      systemMessage: { mode: "append", content: "be brief" },
      organizationCustomInstructions: "be kind",
      model: "own-model",
      tools: [{ name: "weather", description: "w", parameters: { type: "object" } }],
      // These values are allowed, because they add nothing to the session.
      mcpServers: {},
      skillDirectories: [],
      requestExtensions: false,
    };
    expect(await client.request("session.create", { sessionId: harmless, ...settings })).toMatchObject({
      result: {},
    });
    await client.turnOk(harmless, "one");
    for (const [method, params] of [
      ["sessions.fork", { sessionId: harmless }],
      ["session.history.rewind", { sessionId: harmless, eventId: "none" }],
      ["session.model.setAllowedModels", { sessionId: harmless }],
      ["session.options.update", { sessionId: harmless, organizationCustomInstructions: "be kinder" }],
      ["session.instructions.getSources", { sessionId: harmless }],
      ["sessions.getSizes", {}],
      ["plugins.list", {}],
      ["mcp.config.list", {}],
    ] as const) {
      const { error } = await client.request(method, params);
      expect(error?.data?.code, `${method}: ${error?.message}`).not.toBe("FLEET_METHOD_DENIED");
    }
  });
});

describe("the front door, for a client that brings its own model provider with session.host none,", () => {
  let at: DoorFleet;
  let client: RawClient;
  const sessionId = "mine";
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { provider: null, session: { host: "none" } } });
    client = await RawClient.as(at.url, await at.token("alice"), true);
    await client.requestOk("session.create", { sessionId });
  });
  afterAll(async () => {
    client.socket.destroy();
    await at[Symbol.asyncDispose]();
  });

  /** All requests with which a client can name a provider at this address. */
  const requests = (baseUrl: unknown) => {
    const provider = { type: "openai", wireApi: "completions", apiKey: "k", baseUrl };
    const providers = [
      { ...provider, name: "a", baseUrl: PUBLIC },
      { ...provider, name: "b" },
    ];
    return [
      ["session.create", { sessionId: "never", provider, model: "m" }, "provider.baseUrl"],
      ["session.create", { sessionId: "never", providers }, "providers[1].baseUrl"],
      ["session.resume", { sessionId, provider, model: "m" }, "provider.baseUrl"],
      ["session.resume", { sessionId, providers }, "providers[1].baseUrl"],
      ["session.options.update", { sessionId, provider }, "provider.baseUrl"],
      ["session.provider.add", { sessionId, providers }, "providers[1].baseUrl"],
    ] as const;
  };
  const PUBLIC = "https://model.invalid/v1";

  it("sends no request to a service of this machine", async () => {
    const { error } = await client.request("session.create", {
      sessionId: "never",
      model: "m",
      provider: { type: "openai", wireApi: "completions", baseUrl: `${at.model.baseUrl}/x?y=1#`, apiKey: "k" },
    });
    if (error === undefined) await client.turnOk("never", "hello");
    expect(at.model.keys).toEqual(new Set());
    expect(await at.store.sessions.read("never")).toBeNull();
  });

  it.each([
    ...["127.0.0.1:9", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "%31%32%37.0.0.1", "１２７.0.0.1"],
    ...["user:pass@127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[fd00::1]"],
    ...["localhost:6379", "LOCALHOST.", "a.localhost", "redis", "redis.", "printer.local", "metadata.google.internal"],
    ...["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "168.63.129.16", "[fe80::1]"],
  ])("refuses the host %s in every request, and quotes the URL", async (host) => {
    const url = `http://${host}/v1`;
    for (const [method, params, setting] of requests(url)) {
      const { error } = await client.request(method, params);
      expect(error, method).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
      expect(error?.message, method).toContain(`"${setting}" ("${url.replace(/\/\/user:pass@/, "//***@")}")`);
      expect(error?.message, method).toContain(HOW_TO_ALLOW);
    }
    expect(await at.store.sessions.read("never")).toBeNull();
  });

  it.each(["file:///etc/passwd", "not a URL", "//127.0.0.1/v1", 7, null, undefined, { href: "http://127.0.0.1" }])(
    "refuses a provider with the URL %j",
    async (url) => {
      for (const [method, params, setting] of requests(url)) {
        const { error } = await client.request(method, params);
        expect(error?.message, method).toContain(`"${setting}"`);
        expect(error, method).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
      }
    },
  );

  it("refuses a provider that is not an object", async () => {
    for (const params of [
      { provider: ["openai", "http://127.0.0.1"] },
      { providers: { a: "http://127.0.0.1" } },
      { providers: [["a", "openai", "http://127.0.0.1"]] },
    ]) {
      const { error } = await client.request("session.create", { sessionId: "never", ...params });
      expect(error, JSON.stringify(params)).toMatchObject({ data: { code: "FLEET_METHOD_DENIED" } });
    }
  });

  it.each([PUBLIC, "http://8.8.8.8:8080/v1", "https://[2606:4700::1111]/v1", "HTTPS://Model.Invalid./v1"])(
    "allows %s in every request",
    async (url) => {
      for (const [index, [method, params]] of requests(url).entries()) {
        const named = method === "session.create" ? { ...params, sessionId: unused(`allowed-${index}`) } : params;
        const { error } = await client.request(method, named);
        expect(error?.data?.code, `${method}: ${error?.message}`).not.toBe("FLEET_METHOD_DENIED");
      }
    },
  );
});

describe("the front door, for a client on its user's own server with session.host owner,", () => {
  let at: DoorFleet;
  let client: RawClient;
  let homes: { alice: string; bob: string };
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { session: { host: "owner" } } });
    for (const user of ["alice", "bob"]) await at.fleet.servers.spawn(user);
    homes = { alice: (await at.serverOf("alice")).home, bob: (await at.serverOf("bob")).home };
    client = await RawClient.as(at.url, await at.token("alice"), true);
    expect(await client.request("session.create", { sessionId: "mine" })).toMatchObject({ result: {} });
  });
  afterAll(async () => {
    client.socket.destroy();
    await at[Symbol.asyncDispose]();
  });

  it("lets the client run a shell command on the user's own server if session.host is owner", async () => {
    const out = join(homes.alice, unused("out"));
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

  it("lets the client create a session in another folder of the user's home", async () => {
    const configDir = join(homes.alice, "elsewhere");
    expect(await client.request("session.create", { sessionId: unused("apart"), configDir })).toMatchObject({
      result: {},
    });
  });

  it("refuses a session folder outside the user's home, whatever path leads there", async () => {
    const [link, dangling] = [join(homes.alice, unused("link")), join(homes.alice, unused("dangling"))];
    symlinkSync(homes.bob, link);
    symlinkSync(join(homes.bob, "planned"), dangling);
    mkdirSync(join(homes.alice, "folder"), { recursive: true });
    for (const configDir of [
      homes.bob,
      `${homes.alice}-x`,
      link,
      `${link}/sub`,
      dangling,
      `${dangling}/sub`,
      `${homes.alice}/../x`,
      `${link}/../y`,
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

describe("the front door, for a client on its user's own server with session.host auto,", () => {
  const CASES = [
    { sandbox: "bwrap", key: null, reaches: true, why: "a sandbox keeps everything else out of reach" },
    { sandbox: "none", key: null, reaches: false, why: "without a sandbox, everything would be in reach" },
    { sandbox: "bwrap", key: "MODEL_KEY", reaches: true, why: "the key stays in the model gateway" },
  ] as const;

  it.each(CASES.filter(({ sandbox }) => sandbox !== "bwrap" || bwrapProblem === undefined))(
    "with sandbox $sandbox and key $key, allows shell commands: $reaches, because $why",
    async (given) => {
      const provider = {
        type: "openai" as const,
        baseUrl: "http://127.0.0.1:9/v1",
        apiKey: given.key === null ? null : { env: given.key },
      };
      await using at = await DoorFleet.open({ config: { sandbox: { mode: given.sandbox }, provider } });
      const client = await RawClient.as(at.url, await at.token("alice"), true);
      await client.requestOk("session.create", { sessionId: "mine" });
      const { error } = await client.request("session.shell.exec", { sessionId: "mine", command: "true" });
      expect(error?.data?.code).toBe(given.reaches ? undefined : "FLEET_METHOD_DENIED");
    },
  );
});
