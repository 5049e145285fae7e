import { expect, it } from "vitest";
import { NO_SANDBOX, type Protection, type SandboxReport } from "../../src/base/sandbox.js";
import type { Config } from "../../src/config/schema.js";
import { reachesHost } from "../../src/servers/admission.js";

const FILE = { kind: "file" };
const without = (...not: Protection[]): SandboxReport => ({ mode: "landlock", not });
const HOLDS = without("network", "process-list");

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
  ["auto", HOLDS, { kind: "redis", password: null }, false],
  ["auto", HOLDS, { kind: "redis", password: { from: "env", name: "PASSWORD" } }, true],
] as const)("with session.host %j, sandbox %j and store %j, a client may use files and programs: %j", (...given) => {
  const [host, sandbox, store, reaches] = given;
  const config = { session: { host }, store, storeOptions: store, provider: null } as unknown as Config;
  expect(reachesHost({ own: true, config, sandbox })).toBe(reaches);
  expect(reachesHost({ own: false, config, sandbox })).toBe(false);
});
