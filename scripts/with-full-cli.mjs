// Runs a command with COPILOT_CLI_PATH set to the native program of the full CLI: node scripts/with-full-cli.mjs
// COMMAND… npm installs the program once into a cache folder. It is not a dependency, because it has 190 MB.
import { join } from "node:path";
import { installOnce, runWith } from "./install-once.mjs";

const VERSION = "1.0.102";

const folder = installOnce(`@github/copilot-${process.platform}-${process.arch}`, VERSION, "full-cli");
runWith({ COPILOT_CLI_PATH: join(folder, "copilot") }, process.argv.slice(2));
