import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

const TIMEOUT_MS = 10 * 60_000;
const CACHE = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "copilotfleet");

/**
 * Installs one version of a package into a folder of the cache, unless it is already there, and returns the folder of
 * the package itself. Use it for packages that are too large to be dependencies of the project. If the installation
 * fails, prints an error and exits.
 */
export function installOnce(name, version, folderName) {
  const folder = join(CACHE, `${folderName}-${version}`);
  const installed = join(folder, "node_modules", name);
  if (existsSync(installed)) return installed;
  console.error(`Installing ${name}@${version} into ${folder}.`);
  mkdirSync(dirname(folder), { recursive: true });
  // Give the folder its final name last, so that an interrupted download does not count as complete.
  const download = mkdtempSync(`${folder}-`);
  writeFileSync(join(download, "package.json"), '{ "private": true }\n');
  const options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"];
  const npm = spawnSync("npm", ["install", ...options, `${name}@${version}`], {
    cwd: download,
    stdio: ["ignore", "ignore", "inherit"],
    timeout: TIMEOUT_MS,
  });
  if (npm.status !== 0) {
    rmSync(download, { recursive: true, force: true });
    console.error(
      `${name}@${version} could not be installed: ${npm.error?.message ?? `npm exited with ${npm.status}`}.`,
    );
    process.exit(1);
  }
  rmSync(folder, { recursive: true, force: true });
  renameSync(download, folder);
  return installed;
}

/** Runs a command with additional variables. Gives this process the exit code of the command. */
export function runWith(variables, [command = "", ...args]) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", env: { ...process.env, ...variables } });
  if (error !== undefined) console.error(`${command} could not be started: ${error.message}.`);
  process.exitCode = status ?? 1;
}
