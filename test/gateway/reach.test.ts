import { expect, it } from "vitest";
import type { Config } from "../../src/config/schema.js";
import { NO_SANDBOX, type Protection, type SandboxReport } from "../../src/model/sandbox.js";
import { reachesHost } from "../../src/pool/host-reach.js";

const FILE = { kind: "file" };
const without = (...not: Protection[]): SandboxReport => ({ mode: "landlock", not });
const HOLDS = without("network", "process-list", "provider-key");

it.each([
  ["owner", NO_SANDBOX, FILE, true],
  ["owner", undefined, FILE, true],
  ["none", HOLDS, FILE, false],
  ["auto", HOLDS, FILE, true],
  ["auto", undefined, FILE, false],
  ["auto", NO_SANDBOX, FILE, false],
  ["auto", without("signals"), FILE, false],
  ["auto", without("files"), FILE, false],
  ["auto", without("processes"), FILE, false],
  ["auto", without("unix-sockets"), FILE, false],
  ["auto", HOLDS, { kind: "redis", url: "redis://127.0.0.1:6379/0" }, false],
  ["auto", HOLDS, { kind: "redis", url: "redis://:secret@127.0.0.1:6379/0" }, true],
] as const)("with session.host %j, sandbox %j and store %j, a client may use files and programs: %j", (...given) => {
  const [host, sandbox, store, reaches] = given;
  const config = { session: { host }, store, provider: null } as unknown as Config;
  expect(reachesHost({ own: true, config, sandbox })).toBe(reaches);
  expect(reachesHost({ own: false, config, sandbox })).toBe(false);
});

it.each([
  [null, true],
  [{ type: "echo" }, true],
  [{ type: "openai", apiKeyEnv: null, apiKeyFile: null, apiKeyCommand: null }, true],
  [{ type: "openai", apiKeyEnv: "KEY" }, false],
  [{ type: "openai", apiKeyEnv: null, apiKeyFile: "/key" }, false],
  [{ type: "openai", apiKeyEnv: null, apiKeyFile: null, apiKeyCommand: "key" }, false],
])(
  "with session.host auto, the provider %j and no model gateway, a client may use files and programs: %j",
  (provider, reaches) => {
    const config = { session: { host: "auto" }, store: FILE, provider, modelGateway: "off" } as unknown as Config;
    expect(reachesHost({ own: true, config, sandbox: HOLDS })).toBe(reaches);
  },
);

it("with the model gateway, a client may use files and programs unless its server may have the provider's key", () => {
  const provider = { type: "openai", apiKeyEnv: "KEY" };
  const config = { session: { host: "auto" }, store: FILE, provider, modelGateway: "on" } as unknown as Config;
  expect(reachesHost({ own: true, config, sandbox: without("network") })).toBe(true);
  expect(reachesHost({ own: true, config, sandbox: without("network", "provider-key") })).toBe(false);
});
