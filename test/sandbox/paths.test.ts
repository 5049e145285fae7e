import { mkdirSync, mkdtempSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { contains, serverPaths } from "../../src/sandbox/paths.js";
import { grantsOf } from "../../src/sandbox/sandbox.js";
import { removeFolder } from "../fixtures/remove-folder.js";

/** A folder with a program, a library and a state folder beside each other, as in an installation below `/opt`. */
function installation(): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-paths-")));
  onTestFinished(() => removeFolder(folder));
  for (const name of ["library", "state/home"]) mkdirSync(join(folder, name), { recursive: true });
  writeFileSync(join(folder, "program"), "");
  return folder;
}

it("if the runtime's folder contains the fleet's state, a server can read everything else in that folder", () => {
  const folder = installation();
  symlinkSync(join(folder, "state"), join(folder, "link"));
  const home = join(folder, "state", "home");
  const { read, write } = serverPaths({
    hidden: [join(folder, "state")],
    runtimePath: join(folder, "program"),
    own: [home],
    read: [],
    write: [],
  });
  expect(read.filter((path) => path.startsWith(folder)).sort()).toEqual([
    join(folder, "library"),
    join(folder, "program"),
  ]);
  expect(write).toEqual([home]);
});

it("a server reads neither the secrets of the machine in /etc nor the homes of people", () => {
  const { read } = serverPaths({ hidden: [], runtimePath: "/usr/bin/true", own: [], read: [], write: [] });
  for (const secret of [
    "/etc/shadow",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/copilotfleet",
    "/home",
    "/root",
    "/run",
    "/tmp",
    "/var",
  ]) {
    expect(
      read
        .filter((path) => contains(path, secret) || contains(secret, path))
        .filter((path) => !path.startsWith("/run/systemd")),
    ).toEqual([]);
  }
});

it("serverPaths leaves out a path that does not exist", () => {
  const { write } = serverPaths({
    hidden: [],
    runtimePath: "/usr/bin/true",
    own: ["/nowhere"],
    read: [],
    write: ["/nowhere/at/all"],
  });
  expect(write).toEqual([]);
});

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
  apiKeyFile?: string;
  keyFile?: string;
  tlsKey?: string;
  hostKey?: string;
  env?: NodeJS.ProcessEnv;
  state?: string;
}

function grant(given: Grant) {
  const { cwd, bind, runtimePath = "/nowhere/copilot", apiKeyFile, env, state = temporaryFolder() } = given;
  const { keyFile = null, tlsKey = null, hostKey = null } = given;
  const home = join(state, "home");
  const config = {
    auth: { githubToken: null, githubApp: null },
    provider:
      apiKeyFile === undefined
        ? null
        : ({
            type: "openai",
            baseUrl: "",
            apiKey: { from: "file", path: apiKeyFile } as const,
            bearer: false,
            wireApi: "responses",
          } as const),
    storage: { shared: null },
    storeOptions: { key: keyFile === null ? null : ({ from: "file", path: keyFile } as const), password: null },
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
          code: "FLEET_CONFIG_INVALID",
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
  ["provider.apiKey", (file: string) => ({ apiKeyFile: file })],
  ["storeOptions.key", (file: string) => ({ keyFile: file })],
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
      expect.objectContaining({ code: "FLEET_CONFIG_INVALID", message: expect.stringContaining("SSL_CERT_FILE") }),
    );
  }
});
