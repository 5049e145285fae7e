import { describe, expect, it } from "vitest";
import { NO_SANDBOX } from "../../src/model/sandbox.js";
import { serverEnvironment } from "../../src/runtime/launch/environment.js";

/** The environment of a server that a caller with these variables starts, where `pass` is `runtime.env`. */
function environmentOf(env: NodeJS.ProcessEnv, pass: string[] = []): Record<string, string> {
  return serverEnvironment({
    server: { address: "127.0.0.1", home: "/home", cwd: "/home" },
    launchId: "launch",
    runtimePath: "/runtime",
    port: 1,
    connectionToken: "token",
    githubToken: null,
    settings: { path: null, args: [], env: pass, idleTimeoutMs: null },
    stateRoot: "/state",
    sandbox: { ...NO_SANDBOX, wrap: (command) => command },
    sessionState: null,
    env,
  });
}

describe("the environment of a server", () => {
  it("an offline server gets a provider and a model, because the full CLI does not start without them", () => {
    const environment = environmentOf({ COPILOT_OFFLINE: "true" });
    expect(environment).toMatchObject({ COPILOT_PROVIDER_BASE_URL: "http://127.0.0.1:9/v1", COPILOT_MODEL: "none" });
  });

  it("an offline server keeps the operator's own provider and model", () => {
    const own = { COPILOT_OFFLINE: "true", COPILOT_PROVIDER_BASE_URL: "http://127.0.0.1:1/v1", COPILOT_MODEL: "m" };
    const pass = ["COPILOT_PROVIDER_BASE_URL", "COPILOT_MODEL"];
    expect(environmentOf(own, pass)).toMatchObject(own);
  });

  it.each([{}, { COPILOT_OFFLINE: "" }])(
    "an online server gets neither a provider nor a model from the fleet when its variables are %o",
    (caller) => {
      const names = Object.keys(environmentOf(caller));
      expect(names.filter((name) => /PROVIDER|MODEL/.test(name))).toEqual([]);
    },
  );
});
