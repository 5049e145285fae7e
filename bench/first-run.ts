/**
 * Measures the first minute of a user who has only Node.js and npm: `npx copilotfleet smoke` from a packed tarball, in
 * an empty folder and with an empty cache. Needs a registry.
 *
 * Run: npx tsx bench/first-run.ts
 */
import { execFile } from "node:child_process";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { claim, printMachine } from "./measure.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const LARGEST_BYTES = 2_000_000;
/** The limit on installed packages: 110, plus the five or six packages of the SDK. */
const MOST_PACKAGES = 110 + 6;
const LIMIT_MS = 10 * 60 * 1000;
const run = promisify(execFile);

printMachine();
const folder = await mkdtemp(join(tmpdir(), "copilotfleet-first-run-"));
try {
  await run("npm", ["pack", "--pack-destination", folder], { cwd: ROOT });
  const [tarball = ""] = await readdir(folder);
  claim("bytes of the tarball / limit", (await stat(join(folder, tarball))).size / LARGEST_BYTES, 1);
  const cache = join(folder, "cache");
  const env = { PATH: process.env.PATH, HOME: join(folder, "home"), npm_config_cache: cache };
  const npx = async () => {
    const begun = performance.now();
    // For npx, an absolute path without "file:" is a program to run.
    const args = ["--yes", `file:${join(folder, tarball)}`, "smoke"];
    const { stdout } = await run("npx", args, { cwd: folder, env, timeout: LIMIT_MS });
    if (!/^ok +stop /m.test(stdout)) throw new Error(`smoke failed:\n${stdout}`);
    return Math.round(performance.now() - begun);
  };
  console.log(`first npx smoke  ${await npx()} ms`);
  console.log(`second npx smoke ${await npx()} ms`);
  const paths = await readdir(join(cache, "_npx"), { recursive: true });
  const packages = paths.filter((path) => /(?:^|\/)node_modules\/(?:@[^/]+\/)?[^/@.][^/]*\/package\.json$/.test(path));
  // Do not count copilotfleet itself.
  claim("installed packages / limit", (packages.length - 1) / MOST_PACKAGES, 1);
  console.log(`${packages.length - 1} packages`);
} finally {
  await rm(folder, { recursive: true, force: true });
}
