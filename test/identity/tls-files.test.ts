import { generateKeyPairSync } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, onTestFinished } from "vitest";
import { loadConfig, type PartialConfig } from "../../src/config/load/load.js";
import type { Address } from "../../src/config/rules.js";
import type { Context } from "../../src/fleet/doctor/checks.js";
import { CERTIFICATES } from "../../src/fleet/doctor/settings.js";
import { DoorCertificates, doorFiles } from "../../src/identity/tls/certificates.js";
import { checkExposure } from "../../src/identity/tls/exposure.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";

const folder = mkdtempSync(join(tmpdir(), "copilotfleet-tls-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const authority = new TestAuthority();
const good = new CertificateFiles(folder, authority.issue());
const ca = put("ca.crt", authority.cert);

function put(name: string, content: string, mode = 0o600): string {
  const path = join(folder, name);
  writeFileSync(path, content, { mode });
  chmodSync(path, mode);
  return path;
}

function read(given: { cert?: string; key?: string; clientCa?: string | null }): DoorCertificates {
  const files = doorFiles({ cert: good.cert, key: good.key, clientCa: null, ...given });
  if (files === null) throw new Error("there are no files");
  return new DoorCertificates(files);
}

const encrypted = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({
  type: "pkcs8",
  format: "pem",
  cipher: "aes-256-cbc",
  passphrase: "secret",
}) as string;
const damaged = authority.cert.replace(/\n[^-]{20}/, "\nAAAAAAAAAAAAAAAAAAAA");
const isRoot = process.geteuid?.() === 0;

describe("the files of serve.tls", () => {
  it.each([
    ["cert", join(folder, "none"), "which does not exist"],
    ["key", join(folder, "none"), "which does not exist"],
    ["clientCa", join(folder, "none"), "which does not exist"],
    ["cert", folder, "which cannot be used"],
    ["cert", put("text", "hello"), "which has no certificate"],
    ["cert", put("damaged", damaged), "which has a damaged certificate"],
    ["clientCa", put("text", "hello"), "which has no certificate"],
    ["key", put("text", "hello"), "which is not a private key"],
    ["key", put("encrypted", encrypted), "which is encrypted"],
    ["key", put("other", authority.issue().key), `which does not fit the certificate in ${good.cert}`],
    ["key", put("open", authority.issue().key, 0o644), "which has mode 644, so that others can use it"],
    ...(isRoot ? [] : [["key", put("closed", "", 0o000), "which cannot be read: EACCES"] as const]),
  ] as const)("the error about serve.tls.%s names the file %s and why it cannot be used", (key, path, problem) => {
    expect(() => read({ [key]: path })).toThrow(
      expect.objectContaining({
        code: "FLEET_CONFIG_INVALID",
        exit: 3,
        message: expect.stringContaining(`serve.tls.${key} names the file ${path}, ${problem}. Allowed: `),
      }),
    );
  });

  it("serve.tls uses a certificate and its key, and asks clients for certificates only if clientCa is set", () => {
    expect(read({}).options).toMatchObject({ requestCert: false, minVersion: "TLSv1.2" });
    expect(read({ clientCa: ca }).options).toMatchObject({ requestCert: true, rejectUnauthorized: true });
  });

  it("the files of serve.tls are read again when a symlink changes, and unusable new files are not used", () => {
    const [first, second] = [authority.issue(), authority.issue()].map((issued, at) => {
      return new CertificateFiles(folder, issued, `version-${at}`);
    });
    const link = { cert: join(folder, "link.crt"), key: join(folder, "link.key") };
    const point = (files: CertificateFiles | undefined) => {
      for (const part of ["cert", "key"] as const) {
        rmSync(link[part], { force: true });
        symlinkSync(files?.[part] ?? "", link[part]);
      }
    };
    point(first);
    const certificates = read(link);
    const shown = () => certificates.options.cert;
    const before = shown();
    expect(certificates.refresh()).toBe(false);
    point(second);
    expect(certificates.refresh()).toBe(true);
    const after = shown();
    expect(after).not.toBe(before);
    put("version-1.crt", "broken");
    expect(() => certificates.refresh()).toThrow(/serve.tls.cert names the file .*, which has no certificate/);
    expect(shown()).toBe(after);
    expect(certificates.refresh()).toBe(false);
  });

  it("validityFault reports a certificate that has expired or whose validity has not begun", () => {
    const at = (years: number) => new Date(Date.now() + years * 365 * 24 * 3_600_000);
    const fault = (from: Date, to: Date) => {
      const files = new CertificateFiles(folder, authority.issue({ from, to }), "dated");
      return read({ cert: files.cert, key: files.key }).validityFault(new Date());
    };
    expect(fault(at(-1), at(1))).toBeNull();
    expect(fault(at(-2), at(-1))).toMatch(/^The certificate in .*dated\.crt \(serve\.tls\.cert\) expired on /);
    expect(fault(at(1), at(2))).toMatch(/is not valid before /);
  });
});

it.each([
  [{ cert: "/a" }, "serve.tls.cert is set without serve.tls.key"],
  [{ key: "/a" }, "serve.tls.key is set without serve.tls.cert"],
  [{ clientCa: "/a" }, "serve.tls.clientCa is set without serve.tls.cert"],
])("the configuration refuses %j in serve.tls", (tls, problem) => {
  const load = () => loadConfig({ flags: { serve: { tls } }, env: {}, home: folder, cwd: folder });
  expect(load).toThrow(expect.objectContaining({ message: expect.stringContaining(problem) }));
});

const DAY_MS = 24 * 3_600_000;

it.each([
  [100, "ok", /^serve\.tls\.cert is valid until |^valid$/],
  [10, "warning", /^serve\.tls\.cert expires in (9|10) days, on /],
  [-1, "failed", /^The certificate in .* \(serve\.tls\.cert\) expired on /],
] as const)("doctor judges a certificate that is valid for %s more days as %s", async (days, level, detail) => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-doctor-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const authority = new TestAuthority();
  const to = new Date(Date.now() + days * DAY_MS);
  const { cert, key } = new CertificateFiles(
    folder,
    authority.issue({ to, from: new Date(to.getTime() - 200 * DAY_MS) }),
  );
  const ca = join(folder, "ca.crt");
  writeFileSync(ca, authority.cert);
  const flags = { serve: { tls: { cert, key } }, host: { tls: { ca } } };
  const { config } = loadConfig({ flags, env: {}, home: folder, cwd: folder });
  expect(await CERTIFICATES.look({ config } as Context)).toMatchObject({
    level,
    detail: expect.stringMatching(detail),
  });
});

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
