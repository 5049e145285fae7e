import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { parse } from "yaml";
import { renderCompose } from "../../src/deploy/compose.js";
import { CONTAINERS, configured } from "./render.js";

const ECHO = { COPILOTFLEET_PROVIDER_TYPE: "echo" };

interface Compose {
  services: Record<string, Record<string, unknown>>;
  secrets?: Record<string, { file: string }>;
  volumes: Record<string, object>;
}

function compose(env: Record<string, string>, options: Partial<typeof CONTAINERS> = {}) {
  const rendered = renderCompose(configured(env), { ...CONTAINERS, ...options });
  for (const version of ["1.1", "1.2"] as const) {
    expect(parse(rendered.yaml, { version })).toEqual(rendered.compose);
  }
  const made = rendered.compose as unknown as Compose;
  const { environment } = made.services["host-1"] as { environment: Record<string, string> };
  return { ...rendered, ...made, environment };
}

describe("a Compose file", () => {
  it("a Compose file of one host has no Redis", () => {
    const { services, volumes, environment } = compose(ECHO);
    expect(Object.keys(services)).toEqual(["host-1"]);
    expect(Object.keys(volumes)).toEqual(["host-1"]);
    expect(configured(environment).config.provider).toEqual({ type: "echo" });
    expect(services["host-1"]).toMatchObject({
      init: true,
      read_only: true,
      cap_drop: ["ALL"],
      security_opt: ["no-new-privileges:true"],
      tmpfs: ["/tmp:mode=1777,size=256m"],
      pids_limit: 10_496,
      entrypoint: ["copilotfleet"],
      command: ["serve"],
      stop_grace_period: "61s",
      ports: ["127.0.0.1:4300:4300"],
    });
    expect(services["host-1"]?.healthcheck).toMatchObject({
      test: ["CMD", "node", "-e", expect.stringMatching(/^\S+\/readyz\S+$/)],
    });
  });

  it("a Compose file allows front doors without TLS only if serve.tls is not set, and mounts the files of serve.tls", () => {
    const without = configured(compose(ECHO).environment).config;
    expect(without.insecure).toBe(true);
    const tls = { COPILOTFLEET_SERVE_TLS_CERT: "/etc/a/tls.crt", COPILOTFLEET_SERVE_TLS_KEY: "/etc/a/tls.key" };
    const { environment, secrets } = compose({ ...ECHO, ...tls });
    expect(configured(environment).config).toMatchObject({
      insecure: false,
      serve: { tls: { cert: "/run/secrets/copilotfleet/tls.crt", key: "/run/secrets/copilotfleet/tls.key" } },
    });
    expect(Object.keys(secrets ?? {})).toEqual(["tls.crt", "tls.key"]);
  });

  it("a Compose file publishes the HTTP API at the address in serve.http, with the next port for the next host", () => {
    const at = (address: string, env = {}, options = {}) =>
      compose({ ...ECHO, COPILOTFLEET_SERVE_HTTP: address, ...env }, options);
    const { services, environment } = at("localhost:4390", { COPILOTFLEET_STORE: "redis://127.0.0.1/0" });
    expect(services["host-1"]?.ports).toEqual(["127.0.0.1:4300:4300", "127.0.0.1:4390:4380"]);
    expect(services["host-2"]?.ports).toEqual(["127.0.0.1:4301:4300", "127.0.0.1:4391:4380"]);
    const others = Object.entries(environment).filter(([name]) => name !== "COPILOTFLEET_STORE");
    const { serve, http } = configured(Object.fromEntries(others)).config;
    expect({ http: serve.http, origins: http.origins }).toEqual({
      http: { host: "0.0.0.0", port: 4380 },
      origins: ["http://host-1:4380"],
    });
    expect(at("[::1]:0").services["host-1"]?.ports).toContain("[::1]::4380");
    expect(JSON.stringify(compose(ECHO))).not.toMatch(/4380|HTTP_ORIGINS/);
  });

  it("deploy compose refuses an HTTP API that other machines reach without TLS, or that it cannot publish", () => {
    const at = (address: string, env = {}, options = {}) =>
      compose({ ...ECHO, COPILOTFLEET_SERVE_HTTP: address, ...env }, options);
    expect(() => at("0.0.0.0:4380")).toThrow(/^serve\.http is "0\.0\.0\.0:4380", which other machines can reach/);
    expect(at("0.0.0.0:4380", { COPILOTFLEET_INSECURE: "true" }).services["host-1"]?.ports).toContain(
      "0.0.0.0:4380:4380",
    );
    const tls = { COPILOTFLEET_SERVE_TLS_CERT: "/etc/a/tls.crt", COPILOTFLEET_SERVE_TLS_KEY: "/etc/a/tls.key" };
    expect(at("0.0.0.0:4380", tls).environment.COPILOTFLEET_HTTP_ORIGINS).toBe("https://host-1:4380");
    expect(() => at("api.example:4380", tls)).toThrow(/Compose publishes ports only at IP addresses/);
    expect(() => at("127.0.0.1:4301", { COPILOTFLEET_STORE: "redis://127.0.0.1/0" })).toThrow(
      /^With 2 hosts, the HTTP API has the ports from 4301 to 4302/,
    );
  });

  it("names each setting that weakens a default in a comment and in its notices", () => {
    const { yaml, notices } = compose(
      { ...ECHO, COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0", COPILOTFLEET_SESSION_APPROVE: "all" },
      { replicas: 2 },
    );
    const named = notices.flatMap((notice) => /^Weaker than the default: (.*?):/.exec(notice)?.[1] ?? []);
    expect(named).toEqual(["serve.listen and serve.metrics at 0.0.0.0", "insecure true", 'session.approve "all"']);
    for (const name of named) expect(yaml).toContain(`# Weaker than the default: ${name}:`);
    const withTls = { COPILOTFLEET_SERVE_TLS_CERT: "/etc/f/tls.crt", COPILOTFLEET_SERVE_TLS_KEY: "/etc/f/tls.key" };
    expect(compose({ ...ECHO, ...withTls }).notices.join()).not.toContain("insecure");
  });

  // The command that makes the password needs openssl.
  it.skipIf(spawnSync("openssl", ["version"]).error !== undefined)(
    "a Compose file of two hosts has a Redis that keeps all data, and a name and a volume for each host",
    () => {
      const { services, volumes, secrets, environment, notices } = compose(
        { ...ECHO, COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0" },
        { replicas: 2, storage: "shared" },
      );
      expect(Object.keys(services)).toEqual(["redis", "host-1", "host-2"]);
      expect(services.redis?.command).toEqual([
        "redis-server",
        "/run/secrets/redis.conf",
        "--appendonly",
        "yes",
        "--maxmemory-policy",
        "noeviction",
      ]);
      expect(services.redis).toMatchObject({
        user: "999:999",
        read_only: true,
        cap_drop: ["ALL"],
        security_opt: ["no-new-privileges:true"],
      });
      expect(services["host-2"]).toMatchObject({
        environment: { COPILOTFLEET_HOST_NAME: "host-2", COPILOTFLEET_HOST_ADVERTISE: "host-2:4300" },
        volumes: ["host-2:/var/lib/copilotfleet", "shared:/var/lib/copilotfleet-shared"],
        ports: ["127.0.0.1:4301:4300"],
      });
      expect(Object.keys(volumes)).toEqual(["host-1", "host-2", "shared", "redis"]);
      // Hosts and Redis read the password in separate files, because each refuses or cannot read the files of the
      // other.
      expect(Object.keys(secrets ?? {})).toEqual(["REDIS_PASSWORD", "COPILOTFLEET_STORE_KEY", "redis.conf"]);
      expect(services.redis?.secrets).toEqual(["redis.conf"]);
      expect(services["host-1"]?.secrets).not.toContainEqual(expect.objectContaining({ source: "redis.conf" }));
      const folder = mkdtempSync(join(tmpdir(), "copilotfleet-compose-"));
      onTestFinished(() => rmSync(folder, { recursive: true }));
      execFileSync("sh", ["-ec", notices.find((notice) => notice.startsWith("umask")) ?? ""], { cwd: folder });
      const { store, storeOptions, insecure } = configured(environment).config;
      expect(storeOptions).toEqual({
        key: { from: "file", path: "/run/secrets/copilotfleet/COPILOTFLEET_STORE_KEY" },
        password: { from: "file", path: "/run/secrets/copilotfleet/REDIS_PASSWORD" },
      });
      expect(insecure).toBe(true);
      const password = /^requirepass ([0-9a-f]{64})\n$/.exec(readFileSync(join(folder, "redis.conf"), "utf8"))?.[1];
      expect(readFileSync(join(folder, "REDIS_PASSWORD"), "utf8")).toBe(`${password}\n`);
      expect(store).toEqual({ kind: "redis", url: "redis://redis:6379/0" });
    },
  );

  it("a Compose file contains no secret, and escapes each $ so that Compose does not take it for a variable", () => {
    const env = {
      COPILOTFLEET_STORE: "rediss://redis.example/0",
      COPILOTFLEET_STORE_OPTIONS_PASSWORD: '{"env":"STORE_PASSWORD"}',
      STORE_PASSWORD: "canary",
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: "https://models.example/v1",
      COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
      MODEL_KEY: "canary",
      COPILOTFLEET_AUTH_GITHUB_TOKEN: JSON.stringify({ command: "cat $HOME/{user}" }),
    };
    const { yaml, notices, services, secrets, environment } = compose(env);
    expect(yaml + JSON.stringify({ services, notices })).not.toContain("canary");
    expect(secrets).toEqual({
      // biome-ignore lint/suspicious/noTemplateCurlyInString: filled in by docker compose
      STORE_PASSWORD: { file: "${COPILOTFLEET_SECRETS:-./secrets}/STORE_PASSWORD" },
      // biome-ignore lint/suspicious/noTemplateCurlyInString: likewise
      COPILOTFLEET_STORE_KEY: { file: "${COPILOTFLEET_SECRETS:-./secrets}/COPILOTFLEET_STORE_KEY" },
      // biome-ignore lint/suspicious/noTemplateCurlyInString: likewise
      MODEL_KEY: { file: "${COPILOTFLEET_SECRETS:-./secrets}/MODEL_KEY" },
    });
    expect(services["host-1"]?.secrets).toContainEqual({
      source: "MODEL_KEY",
      target: "/run/secrets/copilotfleet/MODEL_KEY",
    });
    expect(environment).toMatchObject({
      COPILOTFLEET_STORE_OPTIONS_PASSWORD_FILE: "/run/secrets/copilotfleet/STORE_PASSWORD",
      COPILOTFLEET_PROVIDER_API_KEY_FILE: "/run/secrets/copilotfleet/MODEL_KEY",
      COPILOTFLEET_AUTH_GITHUB_TOKEN: JSON.stringify({ command: "cat $$HOME/{user}" }),
      // biome-ignore lint/suspicious/noTemplateCurlyInString: filled in by docker compose
      HTTPS_PROXY: "${HTTPS_PROXY:-}",
    });
    expect(environment).not.toHaveProperty("COPILOTFLEET_PROVIDER_API_KEY");
    expect(notices.join()).toContain(
      "secrets beside this file must hold STORE_PASSWORD, COPILOTFLEET_STORE_KEY, MODEL_KEY, with",
    );
  });

  it("a Compose file mounts files with tokens and keys, and is refused when it cannot mount them", () => {
    const { services, environment } = compose({ ...ECHO, COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE: "/keys/{user}.token" });
    expect(services["host-1"]?.volumes).toContain("/keys:/run/secrets/copilotfleet-users:ro");
    expect(environment.COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE).toBe("/run/secrets/copilotfleet-users/{user}.token");
    expect(() => compose({ ...ECHO, COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE: "/keys/{user}/token" })).toThrow(
      /name of a folder/,
    );
    const ofUsers = compose({ ...ECHO, COPILOTFLEET_AUTH_GITHUB_TOKEN: '{"env":"T_{user}"}' });
    expect(ofUsers.services["host-1"]?.volumes).toContain(
      // biome-ignore lint/suspicious/noTemplateCurlyInString: filled in by docker compose
      "${COPILOTFLEET_SECRETS:-./secrets}/users:/run/secrets/copilotfleet-users:ro",
    );
    expect(ofUsers.environment.COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE).toBe("/run/secrets/copilotfleet-users/T_{user}");
  });

  it("a Compose file contains the settings as variables, and is refused if one does not fit into a variable", () => {
    const lists = { COPILOTFLEET_RUNTIME_ARGS: "--log-level,debug", COPILOTFLEET_SESSION_TOOLS: "null" };
    const { environment } = compose({ ...ECHO, ...lists, COPILOTFLEET_SERVE_ACCESS_LOG: "true" });
    expect(environment).toMatchObject({ ...lists, COPILOTFLEET_SERVE_ACCESS_LOG: "true" });
    const issuers = [{ issuer: "https://login.example", audience: "$copilotfleet", claims: { org: "a,b" } }];
    const signOn = compose({ ...ECHO, COPILOTFLEET_IDENTITY_JWT: JSON.stringify(issuers) }).environment;
    // Compose turns "$$" into "$".
    const inContainer = {
      ...signOn,
      COPILOTFLEET_IDENTITY_JWT: signOn.COPILOTFLEET_IDENTITY_JWT?.replace("$$", "$") ?? "",
    };
    expect(configured(inContainer).config.identity.jwt).toMatchObject(issuers);
    const loaded = configured(ECHO, { sandbox: { binds: ["/srv/a,b"] } });
    expect(() => renderCompose(loaded, CONTAINERS)).toThrow(/^sandbox\.binds has an item with a comma/);
  });
});
