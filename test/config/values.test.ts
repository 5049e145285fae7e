import { describe, expect, it } from "vitest";
import { quote } from "../../src/base/errors.js";
import { findKey, keysBelow, keyTree } from "../../src/config/keys.js";
import type { PartialConfig } from "../../src/config/load/load.js";
import { orNullOf } from "../../src/config/problem.js";
import { at, Folder } from "./folder.js";

const DURATIONS = [
  "session.ttl",
  "lock.ttl",
  "health.interval",
  "health.timeout",
  "recycle.maxAge",
  "drain.timeout",
  "serve.turnWait",
];
const BAD_DURATIONS = ["0", "0s", "-5m", "10", "5 parsecs", "NaN", "Infinity", "", " 1h", 10, true];
const VALUES: Record<string, unknown[]> = {
  ...Object.fromEntries(DURATIONS.map((name) => [name, BAD_DURATIONS])),
  "lock.ttl": [...BAD_DURATIONS, "999ms", "25d", "1y"],
  isolation: ["both", "", null, 1],
  "host.name": ["A", "", "a@b", "../x", "-a", "a..b"],
  "host.advertise": ["host", ":4300", "a:99999", "a:0", "0.0.0.0:4300", "[::]:4300", "0:4300"],
  "ports.from": ["5000", 0, -1, 65_536, 4321.5, null],
  "pool.servers": [0, -1, 1.5, "2", null],
  "pool.strategy": ["random", "Sticky"],
  "runtime.path": ["", "a\0b", 3],
  "auth.githubApp.appId": [0, "4711", 1.5],
  "auth.githubApp.installationId": [-1, "42"],
  "session.model": ["", "a b", "a\nb", 5],
  "session.maxActive": [0, -3, "all"],
  "session.maxCredits": [0, 29, 30.5, "all"],
  "session.approve": ["some", true],
  "session.host": ["all", true],
  "session.infinite.enabled": ["yes", "true", 1],
  "session.infinite.backgroundCompactionThreshold": [0, 1.1, -0.5, "0.8"],
  "health.failures": [0, 2.5],
  "recycle.maxMemory": ["1", "0gb", 1024, "1 gb"],
  "sandbox.memory": ["1", "63mb", "2000gb", 1024, "1 gb"],
  "sandbox.processes": [0, 31, 1.5, "200"],
  "sandbox.openFiles": [0, 63, 1_000_001, "all"],
  "sandbox.cpu": [0, -1, 1025, "0.5"],
  "sandbox.network": ["closed", true, null],
  "sandbox.disk": ["0mb", "1023kb", 5, true],
  "provider.type": ["gemini", null],
  "provider.baseUrl": ["127.0.0.1:8080", "ftp://a.example", "file:///etc/passwd", "", "http://", "https://a b/"],
  "provider.wireApi": ["chat"],
  "provider.prices": ["free", true],
  "usage.retention": ["0s", "never", 400, null],
  "provider.bearer": ["yes", 1],
  "serve.listen": [
    "4300",
    ":4300",
    "localhost",
    "localhost:65536",
    "localhost:-1",
    "::1:4300",
    "a b:1",
    "127.0.0.1:04300",
  ],
  "serve.metrics": ["localhost:http"],
  "serve.http": ["4380", "https://localhost:4380", true],
  "http.origins": ["https://app.example", true, null],
  "serve.maxFrame": ["64", "63kb", "257mb", "1gb", 1024, null],
  "serve.proxyProtocol": ["yes", 1, null],
  "serve.tls.cert": ["", " ", 1],
  "serve.tls.key": ["", " ", 1],
  "serve.tls.clientCa": ["", " ", 1],
  "host.tls.ca": ["", " ", 1],
  insecure: ["yes", 1, null],
  "limits.default.connections": [0, -1, 1.5, "16"],
  store: [
    "http://127.0.0.1:6379",
    "redis",
    "redis://",
    "redis:127.0.0.1",
    "redis://127.0.0.1/zero",
    "redis://127.0.0.1/0/1",
    "redis://127.0.0.1/0#x",
    "redis://127.0.0.1/0?db=1",
    "redis://127.0.0.1/0?fleet=",
    "redis://127.0.0.1/0?fleet=a/b",
    "redis://127.0.0.1/0?fleet=a&fleet=b",
    "redis://10.0.0.1:6379/0",
    "File",
    "",
    null,
  ],
  "identity.tokenTtl": ["never", "3651d", "0s", 90, null],
};

const CASES = Object.entries(VALUES).flatMap(([name, values]) => values.map((value) => ({ name, value })));

const EXAMPLES = [...keysBelow(keyTree())].filter(({ kind }) => kind !== "section");
/** Keys that refuse only a blank text. */
const ACCEPTS_ANY_TEXT = /^(?:runtime\.path|storage\.shared|(?:serve|host)\.tls\.\w+)$/;

describe("a value that is not allowed", () => {
  it.each(CASES)("the error for the value $value of $name lists the allowed values", async ({ name, value }) => {
    await using folder = new Folder();
    folder.write(folder.userFile, at(name, value));
    const error = folder.refusal();
    expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
    const shown = typeof value === "string" ? quote(value) : String(value);
    const shownName = name.includes(".") ? name : quote(name);
    expect(error.message).toContain(`${shownName} in ${folder.userFile}, line 1, is ${shown}`);
    expect(error.message).toContain(". Allowed: ");
    expect(error.suggestions).toEqual([expect.stringMatching(/^Correct \S+ in \/.*\/config\.json, line 1\b.*\.$/)]);
  });

  it.each([
    ["session.ttl", 3600],
    ["session.ttl", "3600"],
    ["health.interval", 1.5],
    ["lock.ttl", 300],
    ["host.ttl", 15],
    ["recycle.maxMemory", 512],
    ["serve.maxFrame", 8],
  ])("the error for %s with the value %j asks for a unit, and does not guess one", async (name, value) => {
    await using folder = new Folder();
    folder.write(folder.userFile, JSON.stringify(at(name, value), null, 2));
    const error = folder.refusal();
    expect(error.message).toContain(
      `${name} in ${folder.userFile}, line 3, is ${JSON.stringify(value)}, which has no unit. Allowed: `,
    );
    const initial = findKey(name)?.initial;
    const [, part = ""] = name.split(".");
    expect(error.suggestions).toEqual([
      `Correct ${name} in ${folder.userFile}, line 3, for example "${part}": "${initial}".`,
    ]);
    const flags = at(name, value) as PartialConfig;
    expect(folder.refusal({ flags }).suggestions).toEqual([`Correct config.${name}, for example "${initial}".`]);
    expect(folder.refusal({ flags, flagNames: { [name]: "--given" } }).suggestions).toEqual([
      `Correct --given, for example --given ${initial}.`,
    ]);
  });

  it.each(EXAMPLES)(
    "the example in the error for a wrong $name is allowed, in a file and in a variable",
    async (key) => {
      const { name, variable, kind } = key;
      await using folder = new Folder();
      const tls = { cert: "/a", key: "/b" };
      // Other settings that a key needs to be allowed, or to have an effect.
      const others: Record<string, object> = {
        "auth.githubApp.appId": { auth: { githubApp: { installationId: 2, privateKey: { file: "/key" } } } },
        "auth.githubApp.installationId": { auth: { githubApp: { appId: 1, privateKey: { file: "/key" } } } },
        "auth.githubApp.privateKey": { auth: { githubApp: { appId: 1, installationId: 2 } } },
        "provider.baseUrl": {},
        "provider.type": { provider: { baseUrl: "http://m.example" } },
        "provider.apiKey": { provider: { baseUrl: "http://m.example" } },
        "provider.bearer": { provider: { baseUrl: "http://m.example" } },
        "provider.prices": { provider: { baseUrl: "http://m.example" } },
        "provider.wireApi": { provider: { baseUrl: "http://m.example" } },
        "storage.shared": { store: "redis://127.0.0.1:6379/0" },
        "serve.tls.cert": { serve: { tls: { key: tls.key } } },
        "serve.tls.key": { serve: { tls: { cert: tls.cert } } },
        "serve.tls.clientCa": { serve: { tls } },
        "host.tls.cert": { host: { tls: { key: tls.key } } },
        "host.tls.key": { host: { tls: { cert: tls.cert } } },
        "sandbox.allow": { sandbox: { network: "allow-list" }, provider: { type: "echo" } },
      };
      const flags = (others[name] ?? {}) as PartialConfig;
      folder.write(folder.userFile, at(name, { a: 1 }));
      const [inFile = ""] = folder.refusal({ flags }).suggestions;
      const [, example = ""] = / line 1, for example "\w+": (.+)\.$/.exec(inFile) ?? [];
      folder.write(folder.userFile, at(name, JSON.parse(example)));
      expect(() => folder.load({ flags })).not.toThrow();
      folder.write(folder.userFile, {});
      const wrong = kind === "list" ? "" : ACCEPTS_ANY_TEXT.test(name) ? " " : "no/such value, \u0007";
      const refusal = kind === "list" ? undefined : folder.refusal({ flags, env: { [variable]: wrong } });
      const [, text] = new RegExp(`, for example ${variable}=(.+)\\.$`).exec(refusal?.suggestions[0] ?? "") ?? [];
      expect(() => folder.load({ flags, env: { [variable]: text ?? wrong } })).not.toThrow();
      expect(text === undefined).toBe(kind === "list");
    },
  );

  // Leave out provider.prices: its error is about one of the prices, and a price must not be null.
  it.each(EXAMPLES.filter(({ nullable, name }) => nullable && name !== "provider.prices"))(
    "the error for a wrong $name states that null is allowed",
    async ({ name }) => {
      await using folder = new Folder();
      folder.write(folder.userFile, at(name, { a: 1 }));
      expect(folder.refusal().message).toMatch(/, or null for (?:no limit$|(?!no limit))/);
      expect(
        /^(?:limits|recycle)\.|^sandbox\.[^mb]|^sandbox.memory|^pool\.idleTimeout$|^session\.maxCredits$/.test(name),
      ).toBe(orNullOf(findKey(name) ?? keyTree()).endsWith(" for no limit"));
    },
  );

  it.each([
    ["COPILOTFLEET_USER", "a b", ', such as "alice", or the word null for no default user'],
    ["COPILOTFLEET_RUNTIME_ENV", "A,a/b", ", separated by commas, such as HTTPS_PROXY,NO_PROXY, without COPILOT_HOME"],
  ])(
    "the error for the variable %s=%j states what is allowed in the syntax of variables",
    async (name, text, allowed) => {
      await using folder = new Folder();
      expect(folder.refusal({ env: { [name]: text } }).message).toContain(allowed);
    },
  );

  it("the error for an item of a list in a variable names the item by its number", async () => {
    await using folder = new Folder();
    expect(folder.refusal({ env: { COPILOTFLEET_RUNTIME_ENV: "A,a/b" } }).message).toMatch(
      /^Item 2 of COPILOTFLEET_RUNTIME_ENV \(runtime\.env\) is "a\/b", which contains "\/"\. Allowed: /,
    );
  });

  it("the error for a variable with a possible secret starts with “The value of”, and hides the value", async () => {
    await using folder = new Folder();
    const { message } = folder.refusal({ env: { COPILOTFLEET_PROVIDER_API_KEY: '{"env":"sk-canary"}' } });
    expect(message).toMatch(
      /^The value of COPILOTFLEET_PROVIDER_API_KEY \(provider\.apiKey\) is not a reference to a secret, and is not shown/,
    );
  });

  it("the error for a duration without a unit in a variable asks for a unit", async () => {
    await using folder = new Folder();
    const error = folder.refusal({ env: { COPILOTFLEET_SESSION_TTL: "3600" } });
    expect(error.message).toContain('COPILOTFLEET_SESSION_TTL (session.ttl) is "3600", which has no unit. Allowed: ');
    expect(error.suggestions).toEqual([
      "Correct or unset COPILOTFLEET_SESSION_TTL, for example COPILOTFLEET_SESSION_TTL=30d.",
    ]);
  });

  it.each([
    ["COPILOTFLEET_PORTS_FROM", "ports.from", ["abc", "0", "-1", "65536", "4321.5", "1e4", " 4321", ""]],
    ["COPILOTFLEET_SESSION_TTL", "session.ttl", ["0", "never", ""]],
    ["COPILOTFLEET_SESSION_INFINITE_ENABLED", "session.infinite.enabled", ["yes", "1", "TRUE"]],
    ["COPILOTFLEET_PROVIDER", "provider", ["openai", ""]],
  ])("the error for a bad value in the variable %s names the variable and its key", async (variable, name, values) => {
    await using folder = new Folder();
    for (const value of values) {
      const error = folder.refusal({ env: { [variable]: value } });
      expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
      const shown = /^-?[\d.]+$/.test(value) && name === "ports.from" ? quote(Number(value)) : quote(value);
      expect(error.message).toContain(`${variable} (${name}) is ${shown}`);
      expect(error.message).toContain(". Allowed: ");
      expect(error.suggestions).toEqual([expect.stringMatching(`^Correct or unset ${variable}\\b`)]);
    }
  });

  it.each([
    ["FLEET_USAGE_INVALID", "session.ttl", "0"],
    ["FLEET_USAGE_INVALID", "recycle.maxMemory", "0"],
    ["FLEET_USAGE_INVALID", "ports.from", 70_000],
    ["FLEET_USAGE_INVALID", "isolation", "both"],
  ])("a flag with a value that is not allowed causes the usage error %s", async (code, name, value) => {
    await using folder = new Folder();
    const error = folder.refusal({ flags: at(name, value) as PartialConfig, flagNames: { [name]: "--given" } });
    expect(error).toMatchObject({ code, exit: 2, suggestions: [expect.stringMatching(/for example/)] });
    expect(error.message).toContain(`--given is ${quote(value)}`);
  });

  it.each([
    ["session", 3],
    ["session", null],
    ["ports", [5000, 5999]],
    ["provider", "echo"],
    ["session.infinite", true],
  ])("the section %s is refused with the value %j, which is not an object", async (name, value) => {
    await using folder = new Folder();
    folder.write(folder.userFile, at(name, value));
    const error = folder.refusal();
    expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID" });
    expect(error.message).toMatch(new RegExp(`^"?${name}"? in .*\\. Allowed: an object`));
  });

  it("the error for a non-object file shows an example; the error for an unknown key lists known keys", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, []);
    expect(folder.refusal().suggestions).toEqual([
      'Put the settings between { and }, for example {"isolation": "per-user"}.',
    ]);
    folder.write(folder.userFile, at("lock.a", 1));
    expect(folder.refusal().message).toMatch(/\. Allowed in lock: ttl$/);
    expect(folder.refusal().suggestions[0]).toBe(`Remove "lock.a" in ${folder.userFile}, line 1, or correct its name.`);
    folder.write(folder.userFile, { a: 1 });
    expect(folder.refusal().message).toMatch(
      /\. Allowed at the top level: isolation, ports, .*, storage, insecure, user$/,
    );
  });

  it("a value that is nested 100,000 levels deep is refused with an ordinary error", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, `{"store": ${"[".repeat(100_000)}${"]".repeat(100_000)}}`);
    expect(folder.refusal().message).toContain('"store" in');
  });
});

describe("the folder that hosts share", () => {
  const STORE = { COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0" };

  it("storage.shared is refused when it is in the state folder or contains the state folder", async () => {
    await using folder = new Folder();
    const state = `${folder.home}/fleet/state`;
    const env = { ...STORE, COPILOTFLEET_HOME: state };
    for (const shared of [state, `${state}/`, `${state}/shared`, `${folder.home}/fleet`, "/", `${state}/../state/x`]) {
      const error = folder.refusal({ env: { ...env, COPILOTFLEET_STORAGE_SHARED: shared } });
      expect(error, shared).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
      expect(error.message).toMatch(
        /^COPILOTFLEET_STORAGE_SHARED \(storage\.shared\) is .* Allowed: a folder that all hosts mount, neither in the state folder .* nor around it/,
      );
    }
    for (const shared of [`${state}-shared`, `${folder.home}/fleet/shared`, `${state}/../x`, "/mnt/fleet"]) {
      expect(
        folder.load({ env: { ...env, COPILOTFLEET_STORAGE_SHARED: shared } }).config.storage.shared,
      ).not.toBeNull();
    }
  });
});

describe("arguments and variables that only the fleet may set", () => {
  it.each(["--headless", "--port", "--port=1", "--host=0.0.0.0", "--stdio", "--auth-token-env", "--no-auto-login", ""])(
    "runtime.args with %j is refused",
    async (arg) => {
      await using folder = new Folder();
      folder.write(folder.userFile, { runtime: { args: ["--log-level", arg] } });
      expect(folder.refusal().message).toContain(
        `runtime.args[1] in ${folder.userFile}, line 1, is ${quote(arg)}, which ${arg === "" ? "is empty" : "the fleet sets"}. Allowed:`,
      );
    },
  );

  it.each(["COPILOT_CONNECTION_TOKEN", "COPILOT_HOME", "COPILOTFLEET_LAUNCH_ID", "A-B", "", "1A", "A=B"])(
    "runtime.env with %j is refused",
    async (name) => {
      await using folder = new Folder();
      folder.write(folder.userFile, { runtime: { env: [name] } });
      expect(folder.refusal().message).toContain(
        `runtime.env[0] in ${folder.userFile}, line 1, is ${quote(name)}, which `,
      );
    },
  );

  it("runtime.args and runtime.env accept arguments and variables that the fleet does not set itself", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, { runtime: { args: ["--log-level", "debug"], env: ["NO_PROXY", "https_proxy"] } });
    expect(folder.load().config.runtime).toMatchObject({
      args: ["--log-level", "debug"],
      env: ["NO_PROXY", "https_proxy"],
    });
  });
});

describe("secrets", () => {
  it.each([
    ["runtime.args", ["--x=ghp_canary0123456789"]],
    ["runtime.args", ["github_pat_canary"]],
    ["auth.githubToken", "ghp_canary0123456789"],
    ["auth.githubToken", "my canary"],
    ["auth.githubToken", { env: "ghp_canary0123456789" }],
    ["auth.githubApp.privateKey", { pem: "canary" }],
    ["provider.apiKey", "sk-canary"],
    ["provider.apiKey", { env: "sk-canary" }],
    ["provider.apiKey", { env: "KEY", command: "echo canary" }],
    ["provider.apiKey", ["canary"]],
    ["storeOptions.key", "canary"],
    ["storeOptions.password", { value: "canary" }],
    ["store", "rediss://user:canary@a.example:6379/0"],
    ["provider.baseUrl", "https://user:canary@a.example/v1"],
    ["provider.baseUrl", "https://canary@a.example/v1"],
    ["store", "http://user:canary@a.example"],
  ])("a secret in %s is refused and not shown", async (name, value) => {
    await using folder = new Folder();
    folder.write(folder.userFile, at(name, value));
    const error = folder.refusal();
    expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID" });
    expect(error.message).toContain(name);
    expect(JSON.stringify([error.message, error.suggestions, error.stack, String(error.cause)])).not.toContain(
      "canary",
    );
  });

  it("an error shows a long value of a key that is never secret, but hides tokens and other long values", async () => {
    await using folder = new Folder();
    const long = "claude-sonnet-4-20250514";
    const token = `ghp_canary${"0".repeat(30)}`;
    const messageOf = (name: string, value: string) => {
      folder.write(folder.userFile, at(name, value));
      return folder.refusal().message;
    };
    expect(messageOf("session.model", `${long} latest`)).toContain(
      `is "${long} latest", which contains a space. Allowed: the name`,
    );
    expect(messageOf("host.name", `${long}_1`)).toContain(`is "${long}_1", which contains "_". Allowed`);
    expect(messageOf("session.model", `${token} latest`)).toContain('is "*** latest", which contains a space. Allowed');
    expect(messageOf("provider.baseUrl", long)).toContain(
      'is "***", which does not start with http:// or https://. Allowed',
    );
  });

  it("a store's password is refused in the URL, and the error names storeOptions.password", async () => {
    await using folder = new Folder();
    const error = folder.refusal({ env: { COPILOTFLEET_STORE: "rediss://user:canary@a.example:6379/0" } });
    expect(error.message).toContain('"rediss://***@a.example:6379/0", which contains a password. Allowed: "file", or');
    expect(error.message).toContain("see storeOptions.password");
  });

  it("a store on another host is refused without TLS unless insecure is true", async () => {
    await using folder = new Folder();
    const env = (url: string) => ({ env: { COPILOTFLEET_STORE: url } });
    const error = folder.refusal(env("redis://canary@redis.example"));
    expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
    expect(error.message).toContain("Allowed: rediss:// (TLS)");
    expect(error.message).not.toContain("canary");
    for (const url of ["redis://localhost", "redis://127.0.0.9:1/3", "redis://[::1]/0", "rediss://redis.example/0"]) {
      expect(folder.load(env(url)).config.store).toEqual({ kind: "redis", url });
    }
    folder.write(folder.userFile, { insecure: true });
    expect(folder.load(env("redis://redis.example")).config.store.kind).toBe("redis");
  });
});

describe("values that do not go together", () => {
  it.each([
    [
      "a first port above the last one",
      { ports: { from: 5000, to: 4000 } },
      "ports.from is 5000, which is more than ports.to, 4000 (in ",
      "a ports.from of 4000 or less, or a ports.to of 5000 or more$",
    ],
    [
      "a port range that is smaller than the pool",
      { ports: { from: 5000, to: 5001 }, pool: { servers: 3 } },
      "2 ports for 3 servers",
      "at least one port for each",
    ],
    [
      "an App beside another way to get a token",
      { auth: { githubToken: { env: "A" }, githubApp: { appId: 1, installationId: 2, privateKey: { file: "/key" } } } },
      "auth.githubToken and auth.githubApp are both set",
      "one source",
    ],
    [
      "a health timeout that is longer than all allowed failures",
      { health: { interval: "1s", timeout: "4s" } },
      "health.timeout is 4s",
      "at most health.interval",
    ],
    [
      "one port for two listeners",
      { serve: { listen: "127.0.0.1:9464" } },
      "both use port 9464",
      "a different port for each",
    ],
    [
      "one port for the front door and the HTTP API on all addresses",
      { serve: { listen: "127.0.0.1:4300", http: "0.0.0.0:4300" } },
      "serve.listen and serve.http both use port 4300",
      "a different port for each",
    ],
    [
      "one port for the metrics and the HTTP API on other hosts",
      { serve: { metrics: "127.0.0.1:9464", http: "localhost:9464" } },
      "serve.metrics and serve.http both use port 9464",
      "a different port for each, or the same host for both",
    ],
    [
      "one port for the front door and the HTTP API",
      { serve: { listen: "127.0.0.1:4300", http: "127.0.0.1:4300" } },
      "serve.listen and serve.http both use port 4300",
      "a different port for each",
    ],
    [
      "a remote provider without a URL",
      { provider: { type: "azure" } },
      "provider.baseUrl is not set",
      "the URL of a model service",
    ],
    [
      "the echo model with a URL",
      { provider: { type: "echo", baseUrl: "http://a.example" } },
      "provider.baseUrl",
      "no value when provider.type is",
    ],
    [
      "hosts without an allow-list",
      { sandbox: { allow: ["a.example"] } },
      'sandbox.allow has hosts, but sandbox.network is "auto"',
      'sandbox.network "allow-list"',
    ],
    [
      "a restricted network without a sandbox",
      { sandbox: { network: "none", mode: "none" }, provider: { type: "echo" } },
      'sandbox.network is "none", which needs a sandbox, but sandbox.mode is "none"',
      'another sandbox.mode, or sandbox.network "open"',
    ],
    [
      "GitHub's models without a network",
      { sandbox: { network: "none" } },
      "servers could not reach GitHub's models",
      'sandbox.network "allow-list" with "api.githubcopilot.com" and "api.github.com" in sandbox.allow, or a provider',
    ],
    [
      "GitHub's models on an allow-list with one of their hosts",
      { sandbox: { network: "allow-list", allow: ["*.githubcopilot.com", "api.github.com:80"] } },
      "servers could not reach GitHub's models",
      'with "api.github.com" in sandbox.allow',
    ],
    ...["bash", "builtin:view", "builtin:*", "*", "mcp:files", "task", "somethingNew"].map(
      (tool): [string, object, string, string] => [
        `approval of everything on shared servers that have the tool ${tool}`,
        { isolation: "shared", session: { approve: "all", tools: ["custom:*", tool] } },
        `session.approve is "all", and session.tools has "${tool}"`,
        'session.approve "none"',
      ],
    ),
  ])("the error for %s describes what is allowed", async (_, content, part, allowed) => {
    await using folder = new Folder();
    folder.write(folder.userFile, content);
    const error = folder.refusal();
    expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
    expect(error.message).toContain(part);
    expect(error.message).toMatch(new RegExp(`Allowed: .*${allowed}`));
  });

  it.each([
    { listen: "127.0.0.1:4300", http: "[::1]:4300" },
    { listen: "10.0.0.7:4300", http: "127.0.0.1:4300" },
    { metrics: "0.0.0.0:9464", http: "0.0.0.0:9464" },
    { listen: "127.0.0.1:0", metrics: "0.0.0.0:0", http: "localhost:0" },
  ])("%j is allowed, because one process can listen on all of these addresses", async (serve) => {
    await using folder = new Folder();
    folder.write(folder.userFile, { serve, insecure: true });
    expect(() => folder.load()).not.toThrow();
  });

  it.each([
    { isolation: "shared", session: { approve: "all" } },
    { isolation: "shared", session: { approve: "all", tools: ["custom:*", "custom:bash", "builtin:ask_user"] } },
    { isolation: "shared", session: { approve: "ask", tools: ["bash"] } },
    { isolation: "per-user", session: { approve: "all", tools: ["bash"] } },
  ])("%j is allowed, because it lets no tool on a shared server use files without approval", async (content) => {
    await using folder = new Folder();
    folder.write(folder.userFile, content);
    expect(() => folder.load()).not.toThrow();
  });

  it.each([
    { allow: ["api.githubcopilot.com", "API.github.com.:*"] },
    { allow: ["*.githubcopilot.com:443", "*"] },
    { allow: ["models.example:8443", "api.github.com"], env: { COPILOT_API_URL: "https://models.example:8443/v1" } },
  ])("%j is allowed without a provider, because servers can reach GitHub's models", async ({ allow, env = {} }) => {
    await using folder = new Folder();
    folder.write(folder.userFile, { sandbox: { network: "allow-list", allow } });
    expect(folder.load({ env }).config.sandbox.allow).toEqual(allow);
  });

  it("the error for two values that do not fit together names both sources, and has the flag's code", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, { ports: { to: 4500 } });
    const error = folder.refusal({ flags: { ports: { from: 4600 } }, flagNames: { "ports.from": "--port-from" } });
    expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID", exit: 2 });
    expect(error.message).toContain(`(ports.from: the flag --port-from; ports.to: in ${folder.userFile}, line 1)`);
  });

  it.each([
    "app.example",
    "https://app.example/",
    "https://a.example:443",
    "https://A.example",
    "ftp://a",
    "*",
    "null",
  ])("http.origins refuses %s, which is not an origin", async (origin) => {
    await using folder = new Folder();
    folder.write(folder.userFile, at("http.origins", [origin]));
    expect(folder.refusal().message).toContain(`is ${quote(origin)}, which is not an origin. Allowed: `);
  });

  it("ports below 1024 are refused for every user but root", async () => {
    await using folder = new Folder();
    for (const [name, value] of [
      ["ports.from", 80],
      ["serve.listen", "0.0.0.0:80"],
      ["serve.metrics", "localhost:81"],
    ] as const) {
      const flags = at(name, value) as PartialConfig;
      expect(folder.refusal({ flags, uid: 1000 }).message).toMatch(
        new RegExp(`^config\\.${name} is 8[01]\\. Allowed: a port from 1024`),
      );
      expect(() => folder.load({ flags, uid: 0 })).not.toThrow();
    }
  });
});
