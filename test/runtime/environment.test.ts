import { describe, expect, it } from "vitest";
import { NO_SANDBOX, type RestrictedNetwork } from "../../src/base/sandbox.js";
import { serverEnvironment } from "../../src/runtime/launch/launch.js";

/** The environment of a server if the caller has the variables `env`, and `runtime.env` is `pass`. */
function environmentOf(
  env: NodeJS.ProcessEnv,
  pass: string[] = [],
  network?: RestrictedNetwork,
): Record<string, string> {
  return serverEnvironment({
    server: { address: "127.0.0.1", home: "/home", cwd: "/home" },
    launchId: "launch",
    runtimePath: "/runtime",
    port: 1,
    connectionToken: "token",
    githubToken: null,
    settings: { path: null, args: [], env: pass },
    stateRoot: "/state",
    sandbox: {
      ...NO_SANDBOX,
      ...(network === undefined ? {} : { network }),
      wrap: (command) => command,
      remember: async () => undefined,
    },
    copilotHome: "/home",
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

  it.each([
    [{ HTTPS_PROXY: "http://p" }, { NO_PROXY: "127.0.0.1" }],
    [{ http_proxy: "http://p", NO_PROXY: "a,b" }, { NO_PROXY: "a,b,127.0.0.1" }],
    [
      { HTTPS_PROXY: "http://p", NO_PROXY: "a", no_proxy: "b" },
      { NO_PROXY: "a", no_proxy: "b,127.0.0.1" },
    ],
    [{ NO_PROXY: "a" }, { NO_PROXY: "a" }],
  ])("if the caller has the variables %j, its server exempts its machine from proxies with %j", (given, expected) => {
    const environment = environmentOf(given, ["HTTPS_PROXY", "http_proxy", "NO_PROXY", "no_proxy"]);
    const lists = Object.entries(environment).filter(([name]) => name.toUpperCase() === "NO_PROXY");
    expect(Object.fromEntries(lists)).toEqual(expected);
  });

  it("a server with a restricted network uses the fleet's proxy or none, but never the operator's proxy", () => {
    const pass = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY"];
    const own = Object.fromEntries(pass.map((name) => [name, "http://operator"]));
    const proxies = (network: RestrictedNetwork) =>
      Object.entries(environmentOf(own, pass, network)).filter(([name]) => /proxy/i.test(name));
    expect(proxies("none")).toEqual([]);
    const [proxy, exceptions] = ["http://127.0.0.1:3128", "127.0.0.1,localhost,::1,.0"];
    expect(Object.fromEntries(proxies("allow-list"))).toEqual({
      ...{ http_proxy: proxy, HTTP_PROXY: proxy, https_proxy: proxy, HTTPS_PROXY: proxy },
      ...{ no_proxy: exceptions, NO_PROXY: exceptions, NODE_USE_ENV_PROXY: "1" },
    });
  });
});
