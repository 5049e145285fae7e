import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import { ownVersion, packageVersion, sdkVersion } from "../../src/runtime/launch/versions.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

function versionIn(folder: string): string {
  return (JSON.parse(readFileSync(join(ROOT, folder, "package.json"), "utf8")) as { version: string }).version;
}

describe("versions", () => {
  it("the version of copilotfleet and the version of the SDK come from their packages", () => {
    expect(ownVersion()).toBe(versionIn("."));
    expect(sdkVersion()).toBe(versionIn("node_modules/@github/copilot-sdk"));
  });

  it("packageVersion returns the version of the nearest named package above a file, and null outside of a package", async () => {
    const folder = mkdtempSync(join(tmpdir(), "copilotfleet-versions-"));
    onTestFinished(() => removeFolder(folder));
    mkdirSync(join(folder, "dist"));
    writeFileSync(join(folder, "dist", "package.json"), '{"type": "commonjs"}');
    expect(packageVersion(join(folder, "dist", "a.js"))).toBeNull();
    writeFileSync(join(folder, "package.json"), '{"name": "some", "version": "1.2.3"}');
    expect(packageVersion(join(folder, "dist", "a.js"))).toBe("1.2.3");
  });
});
