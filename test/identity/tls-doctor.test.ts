import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { loadConfig } from "../../src/config/load/load.js";
import { CERTIFICATES } from "../../src/fleet/doctor/settings.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";

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
  expect(await CERTIFICATES.look({ config })).toMatchObject({ level, detail: expect.stringMatching(detail) });
});
