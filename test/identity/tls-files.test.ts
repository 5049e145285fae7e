import { generateKeyPairSync } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { loadConfig } from "../../src/config/load/load.js";
import { DoorCertificates, doorFiles } from "../../src/identity/tls/certificates.js";
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
    ["cert", folder, "which cannot hold a certificate or a key"],
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
