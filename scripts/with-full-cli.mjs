// Runs a command with COPILOT_CLI_PATH set to the native program of the full CLI: node scripts/with-full-cli.mjs
// COMMAND… The program has 190 MB, so it is not a dependency. npm installs it once into a cache folder.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

const VERSION = "1.0.102";
const PACKAGE = `@github/copilot-${process.platform}-${process.arch}`;
const TIMEOUT_MS = 10 * 60_000;

const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "copilotfleet");
const folder = join(cache, `full-cli-${VERSION}`);
const program = join(folder, "node_modules", PACKAGE, "copilot");

if (!existsSync(program)) {
  console.error(`Installing ${PACKAGE}@${VERSION} into ${folder}.`);
  mkdirSync(dirname(folder), { recursive: true });
  // Give the folder its final name last, so that an interrupted download does not count as complete.
  const download = mkdtempSync(`${folder}-`);
  writeFileSync(join(download, "package.json"), '{ "private": true }\n');
  const options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"];
  const npm = spawnSync("npm", ["install", ...options, `${PACKAGE}@${VERSION}`], {
    cwd: download,
    stdio: ["ignore", "ignore", "inherit"],
    timeout: TIMEOUT_MS,
  });
  if (npm.status !== 0) {
    rmSync(download, { recursive: true, force: true });
    console.error(
      `${PACKAGE}@${VERSION} could not be installed: ${npm.error?.message ?? `npm exited with ${npm.status}`}.`,
    );
    process.exit(1);
  }
  rmSync(folder, { recursive: true, force: true });
  renameSync(download, folder);
}

const [command = "", ...args] = process.argv.slice(2);
const { status, error } = spawnSync(command, args, {
  stdio: "inherit",
  env: { ...process.env, COPILOT_CLI_PATH: program },
});
if (error !== undefined) console.error(`${command} could not be started: ${error.message}.`);
process.exitCode = status ?? 1;
