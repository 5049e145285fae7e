import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { keysBelow, keyTree } from "../../src/config/keys.js";
import { type ConfigView, inspectConfig, valueAt } from "../../src/config/load/inspect.js";
import { unflatten } from "../../src/config/load/layers.js";
import type { LoadOptions, PartialConfig } from "../../src/config/load/load.js";
import { Folder } from "./folder.js";

function inspect(folder: Folder, { env, ...options }: LoadOptions = {}): ConfigView {
  return inspectConfig({
    cwd: folder.cwd,
    home: folder.home,
    ...options,
    env: { XDG_CONFIG_HOME: join(folder.home, "config"), COPILOTFLEET_HOME: join(folder.root, "state"), ...env },
  });
}

const messages = ({ problems }: ConfigView) => problems.map(({ message }) => message);

describe("the values in force", () => {
  it("inspectConfig hides the query of an issuer's URL in jwks, which may contain a secret", async () => {
    await using folder = new Folder();
    const issuer = { issuer: "https://login.example", audience: "fleet", claims: { org: "acme?" } };
    const jwt = [{ ...issuer, jwks: "https://login.example/keys?code=canary" }];
    folder.write(folder.userFile, JSON.stringify({ identity: { jwt } }));
    const shown = [{ ...issuer, jwks: "https://login.example/keys?***" }];
    expect(inspect(folder).values["identity.jwt"]?.value).toEqual(shown);
  });

  it("inspectConfig shows every key with its default when nothing is configured", async () => {
    await using folder = new Folder();
    const { values, problems, wrong } = inspect(folder);
    expect({ problems, wrong }).toEqual({ problems: [], wrong: [] });
    const keys = [...keysBelow(keyTree())].filter(
      ({ kind, name }) => kind !== "section" && !name.startsWith("provider."),
    );
    expect(Object.keys(values).sort()).toEqual([...keys.map(({ name }) => name), "provider"].sort());
    expect(values["session.ttl"]).toEqual({ value: "30d", origin: { from: "default", name: null, line: null } });
    for (const { value, origin } of Object.values(values)) {
      expect(value).not.toBeUndefined();
      expect(origin.from).toBe("default");
    }
  });

  it("inspectConfig shows each value with the source that gives it, and its line in a file", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, '{\n "session": { "maxActive": 7, "ttl": "1h",\n "model": "m" }\n}');
    folder.write(folder.projectFile, '{\n\n\n "session": { "model": "n" }\n}');
    const { values } = inspect(folder, { env: { COPILOTFLEET_SESSION_TTL: "2h" } });
    expect(values["session.maxActive"]).toEqual({
      value: 7,
      origin: { from: "file", name: folder.userFile, line: 2 },
    });
    expect(values["session.model"]).toEqual({
      value: "n",
      origin: { from: "file", name: folder.projectFile, line: 4 },
    });
    expect(values["session.ttl"]).toEqual({
      value: "2h",
      origin: { from: "variable", name: "COPILOTFLEET_SESSION_TTL", line: null },
    });
  });

  it("inspectConfig shows the values with which the fleet runs, for all combinations of sources and keys", async () => {
    await using folder = new Folder();
    const some = <T extends Record<string, fc.Arbitrary<unknown>>>(keys: T) => fc.record(keys, { requiredKeys: [] });
    const part = some({
      isolation: fc.constantFrom("per-user", "shared"),
      pool: some({ servers: fc.integer({ min: 1, max: 99 }), idleTimeout: fc.constantFrom("1m", null) }),
      health: some({ interval: fc.constantFrom("200ms", "1s", "1500ms", "2s", "9s") }),
      session: some({ model: fc.constantFrom("a", null), tools: fc.constantFrom(null, ["custom:*"]) }),
      provider: fc.oneof(
        fc.constant(null),
        some({ type: fc.constant("echo") }),
        fc.record(
          {
            type: fc.constantFrom("openai", "azure", "anthropic"),
            baseUrl: fc.constantFrom("http://a.example", "http://b.example"),
            apiKey: fc.constantFrom({ env: "KEY" }, null),
            wireApi: fc.constantFrom("responses"),
          },
          { requiredKeys: ["baseUrl"] },
        ),
      ),
    }) as fc.Arbitrary<PartialConfig>;
    fc.assert(
      fc.property(part, part, fc.constantFrom({}, { COPILOTFLEET_PROVIDER_TYPE: "echo" }), (user, project, env) => {
        folder.write(folder.userFile, user);
        folder.write(folder.projectFile, project);
        const options = { env, configFile: folder.projectFile };
        const view = inspect(folder, options);
        let config: unknown;
        try {
          config = folder.load(options).config;
        } catch (error) {
          expect(messages(view)).toContain((error as Error).message);
          return;
        }
        expect(view.problems).toEqual([]);
        const shown = new Map(Object.entries(view.values));
        folder.write(folder.userFile, {});
        folder.write(folder.projectFile, unflatten(shown));
        expect(folder.load({ configFile: folder.projectFile }).config).toEqual(config);
      }),
      { numRuns: 200 },
    );
  });

  it("inspectConfig hides passwords and tokens, but shows long names of variables and models", async () => {
    await using folder = new Folder();
    const env = {
      COPILOTFLEET_STORE: "rediss://canary@redis.example:6379/0",
      COPILOTFLEET_AUTH_GITHUB_TOKEN: JSON.stringify({ command: "echo ghp_canary0123456789" }),
      COPILOTFLEET_PROVIDER_BASE_URL: "https://a.example/v1?key=canary0123456789abcdef",
      COPILOTFLEET_PROVIDER_API_KEY: '{"env":"AZURE_OPENAI_API_KEY_2"}',
      COPILOTFLEET_RUNTIME_ARGS: "--log-level,canary0123456789abcdef",
      COPILOTFLEET_SESSION_MODEL: "claude-sonnet-4-20250514",
    };
    const { values, problems } = inspect(folder, { env });
    expect(problems).toEqual([]);
    expect(JSON.stringify(values)).not.toContain("canary");
    expect(values.store?.value).toBe("rediss://***@redis.example:6379/0");
    expect(values["runtime.args"]?.value).toEqual(["--log-level", "***"]);
    expect(values["provider.apiKey"]?.value).toEqual({ env: "AZURE_OPENAI_API_KEY_2" });
    expect(values["session.model"]?.value).toBe("claude-sonnet-4-20250514");
    const key = inspect(folder, {
      env: { COPILOTFLEET_PROVIDER_API_KEY: '{"env":"a94a8fe5ccb19ba61c4c0873d391e987982fbbd3"}' },
    });
    expect(JSON.stringify(key)).not.toContain("a94a8fe5");
    const model = inspect(folder, { env: { COPILOTFLEET_SESSION_MODEL: "ghp_canary0123456789" } });
    expect(JSON.stringify(model)).not.toContain("canary");
  });

  it("valueAt returns a value, an object for a section, and null for a key that has no effect", async () => {
    await using folder = new Folder();
    const view = inspect(folder, { env: { COPILOTFLEET_PORTS_TO: "6000", COPILOTFLEET_POOL_SERVERS: "x" } });
    expect(valueAt(view, "ports")).toEqual({ value: { from: 5000, to: 6000 }, origin: null });
    expect(valueAt(view, "session.infinite")).toEqual({
      value: { enabled: true, backgroundCompactionThreshold: 0.8 },
      origin: null,
    });
    expect(valueAt(view, "provider")?.value).toBeNull();
    expect(valueAt(view, "provider.type")).toMatchObject({ value: null, origin: { from: "default" } });
    expect(valueAt(view, "pool.servers")).toBeUndefined();
    const echo = inspect(folder, { env: { COPILOTFLEET_PROVIDER_TYPE: "echo" } });
    expect(valueAt(echo, "provider")?.value).toEqual({ type: "echo" });
    expect(valueAt(echo, "provider.baseUrl")?.value).toBeNull();
  });
});

describe("a configuration with problems", () => {
  it("inspectConfig finds all problems of all sources, each once, and shows the other values", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, '{\n  "sesion": 1,\n  "lock": {"ttl": 5},\n  "pool": {"servers": 0}\n}');
    folder.write(folder.projectFile, '{\n  "ports": 3,\n  "session": {"ttl": 3600, "model": "m"}\n}');
    const view = inspect(folder, { env: { COPILOTFLEET_POOL_SERVERS: "2", COPILOTFLEET_HEALTH_INTERVAL: "x" } });
    expect(messages(view).map((message) => message.replace(/\. Allowed.*|; the nearest.*/, ""))).toEqual([
      `"ports" in ${folder.projectFile}, line 2, is 3`,
      expect.stringContaining(`session.ttl in ${folder.projectFile} counts only when you trust this file.`),
      `"sesion" is not a key of the configuration (in ${folder.userFile}, line 2)`,
      // The variable takes precedence over this value, but the wrong value is still reported.
      `pool.servers in ${folder.userFile}, line 4, is 0, which is less than 1`,
      `lock.ttl in ${folder.userFile}, line 3, is 5, which has no unit`,
      `COPILOTFLEET_HEALTH_INTERVAL (health.interval) is "x", which is not a number with a unit`,
      `session.ttl in ${folder.projectFile}, line 3, is 3600, which has no unit`,
    ]);
    expect(view.values["session.model"]?.value).toBe("m");
    expect(view.values["pool.servers"]?.value).toBe(2);
    expect(view.wrong.sort()).toEqual(["health.interval", "lock.ttl"]);
    for (const key of view.wrong) expect(view.values).not.toHaveProperty([key]);
  });

  it("inspectConfig finds values that do not fit together, and a value that is missing", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, {
      ports: { from: 5000, to: 4000 },
      auth: { githubToken: { env: "A" }, githubApp: { appId: 1, installationId: 2, privateKey: { file: "/key" } } },
      provider: { type: "azure" },
    });
    expect(messages(inspect(folder))).toEqual([expect.stringContaining("provider.baseUrl is not set")]);
    folder.write(folder.userFile, {
      ports: { from: 5000, to: 4000 },
      auth: { githubToken: { env: "A" }, githubApp: { appId: 1, installationId: 2, privateKey: { file: "/key" } } },
    });
    expect(messages(inspect(folder))).toEqual([
      expect.stringContaining("which is more than ports.to"),
      expect.stringContaining("are both set"),
    ]);
  });

  it("inspectConfig reports a forbidden provider.baseUrl as forbidden only, and not as missing, too", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, { provider: { baseUrl: "ftp://a.example" } });
    expect(messages(inspect(folder))).toEqual([
      expect.stringContaining('is "ftp://a.example", which does not start with http:// or https://. Allowed'),
    ]);
  });

  it("inspectConfig reports a file that is not JSON or does not exist, and still shows the other values", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, "{\n,}");
    folder.write(folder.userFile, { session: { model: "m" } });
    const view = inspect(folder);
    expect(messages(view)).toEqual([expect.stringContaining("is not JSON at line 2, column 1")]);
    expect(view.values["session.model"]?.value).toBe("m");
    expect(view.files).toEqual([
      { path: folder.projectFile, kind: "project", state: "unusable" },
      { path: folder.userFile, kind: "user", state: "read" },
    ]);
    const named = inspect(folder, { configFile: "missing.json" });
    expect(messages(named)).toEqual([expect.stringContaining("missing.json does not exist")]);
    expect(named.files[0]).toEqual({ path: join(folder.cwd, "missing.json"), kind: "named", state: "missing" });
  });

  it("inspectConfig reports a file that the user does not trust, and does not apply its guarded keys", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, { store: "redis://127.0.0.1", session: { model: "m" } });
    const view = inspect(folder);
    expect(view.problems).toEqual([expect.objectContaining({ code: "FLEET_CONFIG_UNTRUSTED" })]);
    expect(view.values.store).toMatchObject({ value: "file", origin: { from: "default" } });
    expect(view.values["session.model"]?.value).toBe("m");
    expect(view.files[0]?.state).toBe("untrusted");
  });

  it("inspectConfig reports wrong values of guarded keys in a file that the user does not trust", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, '{\n"session": { "approve": "always" },\n"provider": { "type": "openia" }\n}');
    const view = inspect(folder);
    expect(messages(view)).toEqual([
      expect.stringContaining("count only when you trust this file"),
      expect.stringContaining(`provider.type in ${folder.projectFile}, line 3, is "openia". Allowed: `),
      expect.stringContaining(`session.approve in ${folder.projectFile}, line 2, is "always". Allowed: `),
    ]);
    expect(view.values["session.approve"]).toMatchObject({ value: "none", origin: { from: "default" } });
    expect(view.values.provider?.value).toBeNull();
  });

  it("inspectConfig reports an empty COPILOTFLEET_HOME, and still shows the values", async () => {
    await using folder = new Folder();
    const view = inspect(folder, { env: { COPILOTFLEET_HOME: "" } });
    expect(messages(view)).toEqual([expect.stringContaining('COPILOTFLEET_HOME is ""')]);
    expect(view.values["session.ttl"]?.value).toBe("30d");
  });
});

it("when there is no project file, inspectConfig names the path at which it would read one", async () => {
  await using folder = new Folder();
  mkdirSync(dirname(folder.userFile), { recursive: true });
  expect(inspect(folder).files).toEqual([
    { path: join(folder.cwd, ".copilotfleet.json"), kind: "project", state: "missing" },
    { path: folder.userFile, kind: "user", state: "missing" },
  ]);
});
