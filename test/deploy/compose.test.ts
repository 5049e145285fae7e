import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { renderCompose } from "../../src/deploy/compose.js";
import { CONTAINERS, configured } from "./render.js";

const ECHO = { COPILOTFLEET_PROVIDER_TYPE: "echo" };

interface Compose {
  services: Record<string, Record<string, unknown>>;
  configs: { fleet: { content: string } };
  volumes: Record<string, object>;
}

function compose(env: Record<string, string>, options: Partial<typeof CONTAINERS> = {}) {
  const rendered = renderCompose(configured(env), { ...CONTAINERS, ...options });
  for (const version of ["1.1", "1.2"] as const) {
    expect(parse(rendered.yaml, { version })).toEqual(rendered.compose);
  }
  const made = rendered.compose as unknown as Compose;
  return { ...rendered, ...made, file: JSON.parse(made.configs.fleet.content.replaceAll("$$", "$")) as object };
}

describe("a Compose file", () => {
  it("a Compose file of one host has no Redis", () => {
    const { services, volumes, file } = compose(ECHO);
    expect(Object.keys(services)).toEqual(["host-1"]);
    expect(Object.keys(volumes)).toEqual(["host-1"]);
    expect(file).toEqual({ provider: { type: "echo" } });
    expect(services["host-1"]).toMatchObject({
      init: true,
      read_only: true,
      cap_drop: ["ALL"],
      entrypoint: ["copilotfleet"],
      command: ["serve"],
      stop_grace_period: "61s",
      ports: ["127.0.0.1:4300:4300"],
    });
    expect(services["host-1"]?.healthcheck).toMatchObject({
      test: ["CMD", "node", "-e", expect.stringMatching(/^\S+\/readyz\S+$/)],
    });
  });

  it("a Compose file of two hosts has a Redis that keeps all data, and a name and a volume for each host", () => {
    const { services, volumes, file } = compose(
      { ...ECHO, COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0" },
      { replicas: 2, storage: "shared" },
    );
    expect(Object.keys(services)).toEqual(["redis", "host-1", "host-2"]);
    expect(services.redis?.command).toEqual([
      "redis-server",
      "--appendonly",
      "yes",
      "--maxmemory-policy",
      "noeviction",
    ]);
    expect(file).toMatchObject({ store: "redis://redis:6379/0", storeOptions: { insecure: true } });
    expect(services["host-2"]).toMatchObject({
      environment: { COPILOTFLEET_HOST_NAME: "host-2", COPILOTFLEET_HOST_ADVERTISE: "host-2:4300" },
      volumes: ["host-2:/var/lib/copilotfleet", "shared:/var/lib/copilotfleet-shared"],
      ports: ["127.0.0.1:4301:4300"],
    });
    expect(Object.keys(volumes)).toEqual(["host-1", "host-2", "shared", "redis"]);
    expect(configuredAgain(file)).toMatchObject({ store: { kind: "redis", url: "redis://redis:6379/0" } });
  });

  it("a Compose file contains no secret, and escapes each $ so that Compose does not take it for a variable", () => {
    const env = {
      COPILOTFLEET_STORE: "rediss://:canary@redis.example/0",
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: "https://models.example/v1",
      COPILOTFLEET_PROVIDER_API_KEY_ENV: "MODEL_KEY",
      MODEL_KEY: "canary",
      COPILOTFLEET_AUTH_GITHUB_TOKEN_COMMAND: "cat $HOME/{user}",
    };
    const { yaml, notices, services, configs, file } = compose(env);
    expect(yaml + JSON.stringify({ services, notices })).not.toContain("canary");
    expect(services["host-1"]?.environment).toMatchObject({
      // biome-ignore lint/suspicious/noTemplateCurlyInString: filled in by docker compose
      MODEL_KEY: "${MODEL_KEY:?a secret of the fleet}",
      // biome-ignore lint/suspicious/noTemplateCurlyInString: likewise
      COPILOTFLEET_STORE: "${COPILOTFLEET_STORE:?a secret of the fleet}",
    });
    expect(configs.fleet.content).toContain('"cat $$HOME/{user}"');
    expect(file).toMatchObject({ auth: { githubTokenCommand: "cat $HOME/{user}" } });
    expect(notices.join()).toContain("Set COPILOTFLEET_STORE, MODEL_KEY in the environment of docker compose");
  });

  it("a Compose file mounts token files, and is refused when it cannot mount them", () => {
    const { services, file } = compose({ ...ECHO, COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE: "/keys/{user}.token" });
    expect(services["host-1"]?.volumes).toContain("/keys:/run/secrets/copilotfleet:ro");
    expect(file).toMatchObject({ auth: { githubTokenFile: "/run/secrets/copilotfleet/{user}.token" } });
    expect(() => compose({ ...ECHO, COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE: "/keys/{user}/token" })).toThrow(
      /name of a folder/,
    );
    expect(() => compose({ ...ECHO, COPILOTFLEET_AUTH_GITHUB_TOKEN_ENV: "T_{user}" })).toThrow(/by their full names/);
  });
});

/** The configuration that a host loads from its configuration file. */
function configuredAgain(file: object) {
  return configured({}, file).config;
}
