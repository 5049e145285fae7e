import { mkdirSync, mkdtempSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import type { NamedSource } from "../../src/base/server.js";
import { grantsOf } from "../../src/sandbox/sandbox.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const PACKAGE = fileURLToPath(new URL("../../", import.meta.url)).replace(/\/$/, "");

function temporaryFolder(): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-programs-")));
  onTestFinished(() => removeFolder(folder));
  return folder;
}

/** Grants a folder to a server, as its working folder or as a bind. */
interface Grant {
  cwd?: string;
  bind?: string;
  runtimePath?: string;
  apiKey?: NamedSource;
  storeKey?: NamedSource;
  tlsKey?: string;
  hostKey?: string;
  env?: NodeJS.ProcessEnv;
  state?: string;
}

function grant(given: Grant) {
  const { cwd, bind, runtimePath = "/nowhere/copilot", apiKey, env, state = temporaryFolder() } = given;
  const { storeKey = null, tlsKey = null, hostKey = null } = given;
  const home = join(state, "home");
  const config = {
    auth: { githubToken: null, githubApp: null },
    provider:
      apiKey === undefined
        ? null
        : ({
            type: "openai",
            baseUrl: "",
            apiKey,
            bearer: false,
            wireApi: "responses",
          } as const),
    storage: { shared: null },
    storeOptions: { key: storeKey, password: null },
    serve: { tls: { cert: null, key: tlsKey, clientCa: null } },
    host: { tls: { cert: null, key: hostKey, ca: null } },
  };
  return grantsOf(
    { user: "alice", home, cwd: cwd ?? home, runtimePath },
    { binds: bind === undefined ? [] : [bind] },
    { stateRoot: state, config, env: { HOME: state, ...env } },
  );
}

it.each([
  "/",
  "/etc",
  "/etc/ssh",
  "/usr",
  "/usr/local/bin",
  "/bin",
  "/lib",
  "/proc/self",
  "/dev/shm",
  "/sys",
  "/boot",
  "/opt",
  "/run",
  "/var",
  "/var/spool/cron",
  PACKAGE,
  join(PACKAGE, "dist"),
  join(PACKAGE, "node_modules"),
  dirname(PACKAGE),
  dirname(process.execPath),
])(
  "grantsOf refuses the writable folder %s, because it has programs or settings of the machine or the fleet",
  (folder) => {
    for (const [setting, given] of [
      ["--cwd", { cwd: folder }],
      ["sandbox.binds", { bind: folder }],
    ] as const) {
      expect(() => grant(given), setting).toThrow(
        expect.objectContaining({
          code: "FLEET_SANDBOX_UNSAFE",
          message: expect.stringContaining(`${setting}: "${folder}" would `),
        }),
      );
    }
  },
);

it("a server may not change the Copilot program's folder or its parent, but may change a folder beside it", () => {
  const folder = temporaryFolder();
  for (const name of ["copilot", "work"]) mkdirSync(join(folder, name));
  symlinkSync(join(folder, "copilot"), join(folder, "link"));
  const runtimePath = join(folder, "copilot", "copilot-runtime");
  for (const name of ["copilot", "link", "."])
    expect(() => grant({ cwd: join(folder, name), runtimePath }), name).toThrow(/would let a server change/);
  expect(grant({ cwd: join(folder, "work"), runtimePath }).write).toEqual([join(folder, "work")]);
});

it("a server may read folders with programs, and change a folder of its user below /opt, /var or /srv", () => {
  expect(grant({ bind: "/usr:ro" }).read).toEqual(["/usr"]);
  for (const folder of ["/opt/work/alice", "/var/lib/work/alice", "/srv/work/alice"])
    expect(grant({ bind: folder.replace("alice", "{user}") }).write).toEqual([folder]);
});

it.each([
  ["provider.apiKey", (path: string) => ({ apiKey: { from: "file", path } as const })],
  ["storeOptions.key", (path: string) => ({ storeKey: { from: "file", path } as const })],
  ["serve.tls.key", (file: string) => ({ tlsKey: file })],
  ["host.tls.key", (file: string) => ({ hostKey: file })],
  ["COPILOTFLEET_STORE_FILE", (file: string) => ({ env: { COPILOTFLEET_STORE_FILE: file } })],
])("grantsOf refuses a bind that contains the file of %s, even a read-only bind, and hides the file", (_, given) => {
  const bind = temporaryFolder();
  const file = join(bind, "key");
  expect(() => grant({ bind: `${bind}:ro` })).not.toThrow();
  expect(() => grant({ bind: `${bind}:ro`, ...given(file) })).toThrow(/which contains secrets of the fleet/);
  expect(() => grant({ cwd: bind, ...given(file) })).toThrow(/which contains secrets of the fleet/);
  expect(grant(given(file)).hidden).toContain(file);
});

it("grantsOf ignores variables that name no file of a value", () => {
  const cwd = temporaryFolder();
  const env = { COPILOTFLEET_BACKUP_FILE: join(cwd, "backup") };
  expect(grant({ cwd, env }).hidden).toHaveLength(grant({ cwd }).hidden.length);
});

it.each(["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"])("a server can read the file in %s and nothing beside it", (name) => {
  const folder = temporaryFolder();
  const [file, link] = [join(folder, "ca.pem"), join(folder, "link.pem")];
  writeFileSync(file, "");
  symlinkSync(file, link);
  expect(grant({ env: { [name]: link } })).toMatchObject({ read: [file], named: expect.arrayContaining([link]) });
  expect(grant({ env: { [name]: folder } }).read).toEqual([]);
  expect(grant({ env: { [name]: join(folder, "missing.pem") } }).read).toEqual([]);
});

it("a certificate file may be neither in the fleet's state nor behind a link that the server may have made", () => {
  const state = temporaryFolder();
  const [cwd, secret] = [temporaryFolder(), join(state, "secret")];
  writeFileSync(secret, "");
  symlinkSync(secret, join(cwd, "ca.pem"));
  for (const path of [secret, join(cwd, "ca.pem")]) {
    expect(() => grant({ state, cwd, env: { SSL_CERT_FILE: path } })).toThrow(
      expect.objectContaining({ code: "FLEET_SANDBOX_UNSAFE", message: expect.stringContaining("SSL_CERT_FILE") }),
    );
  }
});
