// Records the methods that each published version of the SDK sends, because clients of all versions connect to the
// front door. The test of the method table reads the result. Run: npx tsx scripts/sdk-methods.ts
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { METHODS_FILE, type MethodChanges, methodsSentBy } from "../test/fixtures/sessions/sdk-methods.js";

const SDK = "@github/copilot-sdk";
/** The oldest version of the SDK that the front door supports. */
const OLDEST = "1.0.5";

const folder = mkdtempSync(join(tmpdir(), "copilotfleet-sdks-"));
try {
  const published = JSON.parse(
    execFileSync("npm", ["view", SDK, "versions", "--json"], { encoding: "utf8" }),
  ) as string[];
  // npm lists the versions in ascending order. Leave out unstable versions, which are builds of single commits.
  const versions = published.slice(published.indexOf(OLDEST)).filter((version) => !version.includes("unstable"));
  const changes: MethodChanges[] = [];
  let before = new Set<string>();
  for (const version of versions) {
    const target = join(folder, version);
    mkdirSync(target);
    const packed = execFileSync("npm", ["pack", "--silent", `${SDK}@${version}`], { cwd: target, encoding: "utf8" });
    execFileSync("tar", ["xzf", packed.trim()], { cwd: target });
    const methods = methodsSentBy(join(target, "package", "dist"));
    const added = [...methods].filter((method) => !before.has(method));
    const removed = [...before].filter((method) => !methods.has(method));
    changes.push({ version, added, removed });
    before = methods;
    console.log(`${version}: ${methods.size} methods`);
  }
  writeFileSync(METHODS_FILE, `${JSON.stringify(changes, null, 2)}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
