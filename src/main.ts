import { fileURLToPath } from "node:url";
import { Config, flush, run } from "@oclif/core";
import { reportError } from "./cli/report.js";

// A reader that has seen enough (`copilotfleet logs … | head`) closes the pipe: the end of the work, not an error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
});

const root = fileURLToPath(new URL("..", import.meta.url));
const args = process.argv.slice(2);
const config = await Config.load({ root });
try {
  await dispatch(args);
  await flush();
} catch (error) {
  process.exitCode = reportError(error, { args, config });
}

/** A plain command goes straight to its class: oclif's `run` loads help and version handling first, which takes time. */
async function dispatch([id = "", ...rest]: string[]): Promise<void> {
  const options = rest.includes("--") ? rest.slice(0, rest.indexOf("--")) : rest;
  if (config.findCommand(id) === undefined || options.includes("--help")) await run(args, config);
  else await config.runCommand(id, rest);
}
