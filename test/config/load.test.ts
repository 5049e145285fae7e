import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { asVariable, findKey, keysBelow, keyTree, keyVariables } from "../../src/config/keys.js";
import { environmentLayer, unknownVariables } from "../../src/config/load/environment.js";
import type { PartialConfig } from "../../src/config/load/load.js";
import { REMOVED } from "../../src/config/removed.js";
import { at, Folder } from "./folder.js";

const EXAMPLE = fileURLToPath(new URL("../../.copilotfleet.example.json", import.meta.url));

describe("defaults", () => {
  it("the configuration has exactly these defaults if nothing is configured", async () => {
    await using folder = new Folder();
    expect(folder.load()).toEqual({
      given: new Map(),
      sources: [],
      stateRoot: join(folder.home, ".local/state/copilotfleet"),
      config: {
        isolation: "per-user",
        ports: { from: 5000, to: 5999 },
        pool: { servers: 1, strategy: "sticky", idleTimeoutMs: null },
        runtime: { path: null, args: [], env: ["HTTPS_PROXY"] },
        auth: { githubToken: null, githubApp: null },
        provider: null,
        session: {
          model: null,
          ttlMs: 30 * 86_400_000,
          maxActive: 50,
          maxCredits: null,
          answerTimeoutMs: 300_000,
          approve: "none",
          host: "auto",
          tools: null,
          infinite: { enabled: true, backgroundCompactionThreshold: 0.8 },
        },
        sandbox: {
          mode: "auto",
          binds: [],
          network: "auto",
          allow: [],
          limits: { memory: null, processes: null, openFiles: null, cpu: null, disk: null },
        },
        identity: { tokenTtlMs: 7_776_000_000, jwt: [], github: { api: null, organizations: [] } },
        lock: { ttlMs: 300_000 },
        health: {
          intervalMs: 5000,
          timeoutMs: 2000,
          failures: 3,
          restarts: 5,
          stalledTurnMs: 600_000,
        },
        recycle: { maxMemoryBytes: 1_073_741_824, maxAgeMs: 86_400_000 },
        drain: { timeoutMs: 30_000 },
        serve: {
          listen: { host: "127.0.0.1", port: 4300 },
          http: null,
          accessLog: false,
          metrics: { host: "127.0.0.1", port: 9464 },
          maxFrameBytes: 8_388_608,
          proxyProtocol: false,
          tls: { cert: null, key: null, clientCa: null },
          turnWaitMs: 30_000,
        },
        http: { origins: [], proxies: [] },
        limits: {
          default: {
            ...{ connections: 16, sessions: 1000 },
            ...{ turnsPerMinute: null, concurrentTurns: null, tokensPerDay: null, tokensPerMonth: null },
          },
          groups: {},
          total: { connections: 1024 },
        },
        events: { retentionMs: 7_776_000_000 },
        usage: { retentionMs: 34_560_000_000 },
        store: { kind: "file" },
        storeOptions: { key: null, password: null },
        host: {
          tls: { cert: null, key: null, ca: null },
          name: null,
          advertise: null,
          ttlMs: 15_000,
        },
        storage: { shared: null },
        insecure: false,
        user: null,
      },
    });
  });

  it("the example file names every key, and sets every key outside of the provider to its default", async () => {
    await using folder = new Folder();
    const text = readFileSync(EXAMPLE, "utf8");
    const defaults = folder.load().config;
    const { provider, ...rest } = folder.load({ configFile: EXAMPLE }).config;
    // The example sets a provider, so the default model is gpt-5 and not null.
    expect({ ...rest, provider: null }).toEqual({ ...defaults, session: { ...defaults.session, model: "gpt-5" } });
    expect(provider).toEqual({
      type: "openai",
      baseUrl: "http://127.0.0.1:11434/v1",
      apiKey: { from: "env", name: "OPENAI_API_KEY" } as const,
      bearer: false,
      wireApi: "completions",
      prices: null,
    });
    const example = JSON.parse(text) as Record<string, unknown>;
    for (const key of keysBelow(keyTree())) {
      const value = key.name.split(".").reduce<unknown>((at, part) => (at as Record<string, unknown>)[part], example);
      expect(value, key.name).toBeDefined();
    }
  });

  it("the default model is null for GitHub's own models, and gpt-5 for a provider", async () => {
    await using folder = new Folder();
    const model = (flags: PartialConfig) => folder.load({ flags }).config.session.model;
    const provider = { type: "echo" } as const;
    expect(model({})).toBeNull();
    expect(model({ provider })).toBe("gpt-5");
    expect(model({ provider, session: { model: null } })).toBeNull();
    expect(model({ provider, session: { model: "of-flag" } })).toBe("of-flag");
    expect(model({ session: { model: "of-flag" } })).toBe("of-flag");
  });

  it("the default of health.timeout is the value of health.interval if that is shorter than 2 s", async () => {
    await using folder = new Folder();
    expect(folder.load({ flags: { health: { interval: "200ms" } } }).config.health.timeoutMs).toBe(200);
  });
});

describe("precedence", () => {
  it("the order of precedence is flags, variables, the project file, the user's file, defaults", async () => {
    await using folder = new Folder();
    const sources = {
      user: (value: string) => folder.write(folder.userFile, { session: { model: value } }),
      project: (value: string) => folder.write(folder.projectFile, { session: { model: value } }),
    };
    const model = (options = {}) => folder.load(options).config.session.model;
    expect(model()).toBeNull();
    sources.user("of-user");
    expect(model()).toBe("of-user");
    sources.project("of-project");
    expect(model()).toBe("of-project");
    const env = { COPILOTFLEET_SESSION_MODEL: "of-variable" };
    expect(model({ env })).toBe("of-variable");
    expect(model({ env, flags: { session: { model: "of-flag" } } })).toBe("of-flag");
    expect(model({ env, flags: { session: { model: undefined } } })).toBe("of-variable");
    expect(folder.load().sources).toEqual([folder.projectFile, folder.userFile]);
  });

  it("the precedence of sources applies to each key separately, for all combinations of sources and keys", async () => {
    await using folder = new Folder();
    const part = fc.record(
      {
        pool: fc.record({ servers: fc.integer({ min: 1, max: 99 }) }, { requiredKeys: [] }),
        session: fc.record(
          { maxActive: fc.integer({ min: 1, max: 99 }), model: fc.constantFrom("a", "b", "c") },
          { requiredKeys: [] },
        ),
        runtime: fc.record({ args: fc.array(fc.constantFrom("--x", "--y"), { maxLength: 2 }) }, { requiredKeys: [] }),
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(part, part, part, (user, project, flags) => {
        folder.write(folder.userFile, user);
        folder.write(folder.projectFile, project);
        const { config } = folder.load({ flags, configFile: folder.projectFile });
        expect(config.pool.servers).toBe(flags.pool?.servers ?? project.pool?.servers ?? user.pool?.servers ?? 1);
        expect(config.session.maxActive).toBe(
          flags.session?.maxActive ?? project.session?.maxActive ?? user.session?.maxActive ?? 50,
        );
        expect(config.session.model).toBe(
          flags.session?.model ?? project.session?.model ?? user.session?.model ?? null,
        );
        expect(config.runtime.args).toEqual(flags.runtime?.args ?? project.runtime?.args ?? user.runtime?.args ?? []);
      }),
      { numRuns: 60 },
    );
  });

  it("only the nearest project file is read", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, { session: { model: "far", maxActive: 7 } });
    folder.write(join(folder.project, "a", "b", ".copilotfleet.json"), { session: { model: "near" } });
    expect(folder.load().config.session).toMatchObject({ model: "near", maxActive: 50 });
  });

  it("a provider replaces a lower source's provider of another type, and is merged with one of its own type", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, {
      provider: { type: "openai", baseUrl: "https://a.example/v1", apiKey: { env: "A_KEY" } },
    });
    const configFile = folder.projectFile;
    folder.write(configFile, { provider: { type: "anthropic", baseUrl: "https://b.example" } });
    expect(folder.load({ configFile }).config.provider).toMatchObject({
      baseUrl: "https://b.example",
      apiKey: null,
    });
    folder.write(configFile, { provider: { baseUrl: "https://c.example" } });
    expect(folder.load({ configFile }).config.provider).toMatchObject({
      baseUrl: "https://c.example",
      apiKey: { from: "env", name: "A_KEY" },
    });
    folder.write(configFile, {});
    expect(folder.load({ env: { COPILOTFLEET_PROVIDER_TYPE: "echo" } }).config.provider).toEqual({ type: "echo" });
    expect(folder.load({ env: { COPILOTFLEET_PROVIDER: "null" } }).config.provider).toBeNull();
    expect(folder.load({ flags: { provider: null } }).config.provider).toBeNull();
  });

  it("a setting for GitHub tokens replaces all other such settings from sources of lower precedence", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, { auth: { githubToken: { env: "GH_{user}" } } });
    const auth = folder.load({ env: { COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE: "/t/{user}" } }).config.auth;
    expect(auth).toEqual({ githubToken: { from: "file", path: "/t/{user}" }, githubApp: null });
  });

  it("the keys of auth.githubApp may come from different sources, and replace other settings for tokens", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, { auth: { githubApp: { appId: 1, installationId: 2 } } });
    const env = { COPILOTFLEET_AUTH_GITHUB_APP_PRIVATE_KEY_FILE: "/key" };
    const app = { appId: 1, installationId: 2, privateKey: { file: "/key" } };
    const read = { ...app, privateKey: { from: "file", path: "/key" } };
    expect(folder.load({ env }).config.auth.githubApp).toEqual(read);
    expect(folder.refusal().message).toContain("auth.githubApp.privateKey is not set");
    folder.write(folder.userFile, { auth: { githubToken: { env: "GH" } } });
    const { auth } = folder.load({ flags: { auth: { githubApp: app } } }).config;
    expect(auth).toMatchObject({ githubToken: null, githubApp: read });
  });

  it("a relative path is resolved against the folder of the file that sets it, or else the working folder", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, { runtime: { path: "./bin/copilot" }, auth: { githubToken: { file: "~/t" } } });
    const { runtime, auth } = folder.load({ configFile: folder.projectFile }).config;
    folder.write(folder.projectFile, {});
    expect(runtime.path).toBe(join(folder.project, "bin/copilot"));
    expect(auth.githubToken).toEqual({ from: "file", path: join(folder.home, "t") });
    const path = (text: string) => folder.load({ env: { COPILOTFLEET_RUNTIME_PATH: text } }).config.runtime.path;
    expect(path("./copilot")).toBe(join(folder.cwd, "copilot"));
    expect(path("copilot")).toBe("copilot");
  });
});

describe("environment", () => {
  it("environment variables set keys of every kind", async () => {
    await using folder = new Folder();
    const { config } = folder.load({
      env: {
        COPILOTFLEET_ISOLATION: "shared",
        COPILOTFLEET_PORTS_FROM: "6000",
        COPILOTFLEET_PORTS_TO: "6100",
        COPILOTFLEET_RUNTIME_ARGS: "--log-level, debug",
        COPILOTFLEET_RUNTIME_ENV: "",
        COPILOTFLEET_PROVIDER_BASE_URL: "http://127.0.0.1:1/v1",
        COPILOTFLEET_SESSION_MAX_ACTIVE: "9",
        COPILOTFLEET_SESSION_INFINITE_ENABLED: "false",
        COPILOTFLEET_SESSION_INFINITE_BACKGROUND_COMPACTION_THRESHOLD: "0.5",
        COPILOTFLEET_RECYCLE_MAX_MEMORY: "null",
        COPILOTFLEET_SERVE_LISTEN: "[::1]:0",
        COPILOTFLEET_STORE: "rediss://user@redis.example:6379/0",
      },
    });
    expect(config).toMatchObject({
      isolation: "shared",
      ports: { from: 6000, to: 6100 },
      runtime: { args: ["--log-level", "debug"], env: [] },
      provider: { type: "openai", baseUrl: "http://127.0.0.1:1/v1" },
      session: { maxActive: 9, infinite: { enabled: false, backgroundCompactionThreshold: 0.5 } },
      recycle: { maxMemoryBytes: null },
      serve: { listen: { host: "::1", port: 0 } },
      store: { kind: "redis", url: "rediss://user@redis.example:6379/0" },
    });
  });

  it("variables of a Kubernetes Service copilotfleet are ignored; misspelled variables are reported", async () => {
    await using folder = new Folder();
    const env = {
      COPILOTFLEET_SERVICE_HOST: "10.0.0.1",
      COPILOTFLEET_SERVICE_PORT: "4300",
      COPILOTFLEET_SERVICE_PORT_HTTP: "4300",
      COPILOTFLEET_PORT: "tcp://10.0.0.1:4300",
      COPILOTFLEET_PORT_4300_TCP: "tcp://10.0.0.1:4300",
      COPILOTFLEET_PORT_4300_TCP_ADDR: "10.0.0.1",
      COPILOTFLEET_HOME: join(folder.root, "state"),
      COPILOTFLEET_ALLOW_NETWORK_FS: "1",
      COPILOTFLEET_SESION_TTL: "1h",
      COPILOTFLEET_STORE: "file",
      HOME: folder.home,
    };
    expect(folder.load({ env }).stateRoot).toBe(join(folder.root, "state"));
    expect(unknownVariables(env)).toEqual([{ name: "COPILOTFLEET_SESION_TTL", nearest: "COPILOTFLEET_SESSION_TTL" }]);
  });

  it("the variable of each key takes effect even if it is the only variable of the fleet", async () => {
    await using folder = new Folder();
    for (const variable of keyVariables()) {
      const layer = environmentLayer({ [variable]: "null" }, { folder: folder.cwd, home: folder.home });
      expect([...layer.values()].map(({ origin }) => origin.name)).toEqual([variable]);
    }
    expect(folder.load({ env: { COPILOTFLEET_USER: "alice" } }).config.user).toBe("alice");
    expect(folder.refusal({ env: { COPILOTFLEET_USER: "a b" } }).message).toContain("COPILOTFLEET_USER (user) is");
  });

  it.each(Object.entries(REMOVED).filter(([key]) => findKey(key) === undefined))(
    "a file, a variable or an option with the removed key %s is refused with what replaces the key",
    async (key, replacement) => {
      await using folder = new Folder();
      const name = key.replace("*", "default");
      const variable = `COPILOTFLEET_${asVariable(name)}`;
      const ofOption = folder.refusal({ flags: at(name, 1) });
      folder.write(folder.userFile, at(name, 1));
      const message = (subject: string, where: string) =>
        `${subject} is no longer a key of the configuration (${where}). ${replacement}`;
      expect([ofOption, folder.refusal()]).toMatchObject([
        { code: "FLEET_CONFIG_INVALID", message: message(`"${name}"`, `the option config.${name}`) },
        { code: "FLEET_CONFIG_INVALID", message: message(`"${name}"`, `in ${folder.userFile}, line 1`) },
      ]);
      folder.write(folder.userFile, {});
      // The variable of a key such as provider.apiKeyFile names the file of the new key.
      if (variable.endsWith("_FILE")) return;
      expect(folder.refusal({ env: { [variable]: "1" } })).toMatchObject({
        code: "FLEET_CONFIG_INVALID",
        message: message(variable, `the variable ${variable}`),
      });
    },
  );

  it("unknownVariables reports a variable that names a section, and suggests a variable in that section", () => {
    expect(unknownVariables({ COPILOTFLEET_AUTH: "x", COPILOTFLEET_PROVIDER: "null" })).toEqual([
      { name: "COPILOTFLEET_AUTH", nearest: "COPILOTFLEET_AUTH_GITHUB_TOKEN" },
    ]);
  });

  it("each key has its own variable, and no variable has a name that Kubernetes generates", () => {
    const names = [...keysBelow(keyTree())].map((key) => key.variable);
    expect(new Set(names).size).toBe(names.length);
    expect(names.filter((name) => /_SERVICE_(HOST|PORT)|_PORT(_|$)/.test(name))).toEqual([]);
  });
});
