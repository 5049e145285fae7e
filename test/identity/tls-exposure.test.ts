import { describe, expect, it } from "vitest";
import { loadConfig, type PartialConfig } from "../../src/config/load/load.js";
import type { Address } from "../../src/config/rules.js";
import { checkExposure } from "../../src/identity/tls/exposure.js";

const REDIS = { store: "redis://127.0.0.1:6379/0" } as const;

function check(config: PartialConfig, listen?: Address | { fd: number }): void {
  const loaded = loadConfig({ flags: config, env: {}, home: "/none", cwd: "/none" }).config;
  const where = listen ?? loaded.serve.listen;
  if (where !== null) checkExposure(loaded, where, { hasPeers: loaded.store.kind === "redis" });
}

describe("a front door without TLS", () => {
  it.each(["127.0.0.1:4300", "127.8.9.1:0", "[::1]:4300", "localhost:4300"])(
    "a front door without TLS may listen on %s",
    (listen) => {
      expect(() => check({ serve: { listen } })).not.toThrow();
    },
  );

  it("without TLS, a front door may use any address if serve.insecure is set, or an inherited descriptor", () => {
    expect(() => check({}, { fd: 3 })).not.toThrow();
    expect(() => check({ serve: { listen: "0.0.0.0:4300", insecure: true } })).not.toThrow();
  });

  it.each(["0.0.0.0:4300", "[::]:4300", "10.0.0.1:0", "fleet.example:4300"])(
    "a front door without TLS may not listen on %s, and the error names serve.listen, serve.tls and serve.insecure",
    (listen) => {
      expect(() => check({ serve: { listen }, host: { insecure: true } })).toThrow(
        expect.objectContaining({
          code: "FLEET_CONFIG_INVALID",
          exit: 3,
          message: expect.stringMatching(/^serve\.listen is ".*", which.*serve\.tls is not set.*serve\.insecure/),
        }),
      );
    },
  );

  it("without TLS, host.insecure is needed if host.advertise is not a loopback address", () => {
    const serve = { listen: "0.0.0.0:4300", insecure: true };
    const advertise = "10.0.0.1:4300";
    expect(() => check({ ...REDIS, serve, host: { advertise } })).toThrow(/^host\.advertise is .* or host\.insecure/);
    expect(() => check({ ...REDIS, serve, host: { advertise, insecure: true } })).not.toThrow();
    expect(() => check({ serve, host: { advertise } })).not.toThrow();
  });
});

it("checkExposure reports a file of serve.tls that cannot be used", () => {
  const serve = { listen: "0.0.0.0:4300", tls: { cert: "/none/a", key: "/none/b" } };
  expect(() => check({ serve })).toThrow(/^serve\.tls\.cert names the file \/none\/a, which does not exist/);
});
