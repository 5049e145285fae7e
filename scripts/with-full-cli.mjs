// Runs a command with COPILOT_CLI_PATH set to the native program of the full CLI: node scripts/with-full-cli.mjs
// [--oldest] COMMAND… npm installs the program once into a cache folder. It is not a dependency, because it has 190 MB.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { installOnce, runWith } from "./install-once.mjs";

const NEWEST = "1.0.102";

const args = process.argv.slice(2);
const isOldest = args[0] === "--oldest";
const folder = installOnce(
  `@github/copilot-${process.platform}-${process.arch}`,
  isOldest ? oldest() : NEWEST,
  "full-cli",
);
runWith({ COPILOT_CLI_PATH: join(folder, "copilot") }, isOldest ? args.slice(1) : args);

/** The oldest release that the fleet starts. */
function oldest() {
  const source = readFileSync(new URL("../src/runtime/launch/versions.ts", import.meta.url), "utf8");
  return /OLDEST_RUNTIME = "(.+)"/.exec(source)[1];
}
