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

  it("without TLS, a front door may use any address if insecure is set, or an inherited descriptor", () => {
    expect(() => check({}, { fd: 3 })).not.toThrow();
    expect(() => check({ serve: { listen: "0.0.0.0:4300" }, insecure: true })).not.toThrow();
  });

  it.each(["0.0.0.0:4300", "[::]:4300", "10.0.0.1:0", "fleet.example:4300"])(
    "a front door without TLS may not listen on %s, and the error names serve.listen, serve.tls and insecure",
    (listen) => {
      expect(() => check({ serve: { listen } })).toThrow(
        expect.objectContaining({
          code: "FLEET_CONFIG_INVALID",
          exit: 3,
          message: expect.stringMatching(/^serve\.listen is ".*", which.*serve\.tls is not set.*; or insecure/),
        }),
      );
    },
  );

  it("without TLS, insecure is needed if hosts are to use a host.advertise that is not a loopback address", () => {
    const host = { advertise: "10.0.0.1:4300" };
    expect(() => check({ ...REDIS, host })).toThrow(/^host\.advertise is .* or insecure/);
    expect(() => check({ ...REDIS, host, insecure: true })).not.toThrow();
    expect(() => check({ host })).not.toThrow();
  });
});

it("checkExposure reports a file of serve.tls that cannot be used", () => {
  const serve = { listen: "0.0.0.0:4300", tls: { cert: "/none/a", key: "/none/b" } };
  expect(() => check({ serve })).toThrow(/^serve\.tls\.cert names the file \/none\/a, which does not exist/);
});
