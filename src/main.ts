import { userInfo } from "node:os";
import { fileURLToPath } from "node:url";
import { Config, flush, run } from "@oclif/core";
import { commandOf } from "./cli/command-id.js";
import { withJsonFlag } from "./cli/json-flag.js";
import { reportError } from "./cli/report.js";

/** Runs one command of the command line and sets the exit code. */
export async function main(given: string[]): Promise<void> {
  // A reader of our output, such as `head`, may close the pipe early. This is not an error, and the command ends.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    process.exit(0);
  });
  nameShell();
  const root = fileURLToPath(new URL("..", import.meta.url));
  // The command has no plug-ins of users. Looking for them prints a warning if the home folder cannot be read.
  const config = await Config.load({ root, userPlugins: false });
  const args = withJsonFlag(given, config);
  const report = (error: unknown) => {
    process.exitCode = reportError(error, { args, config });
  };
  // Node.js exits silently with code 0 when nothing is left to wait for. If that happens before the command has finished,
  // report it as an error.
  const onIdle = () => report(new Error("The command waits for something that never happens"));
  process.once("beforeExit", onIdle);
  try {
    await dispatch(args, config);
    await flush();
  } catch (error) {
    report(error);
  } finally {
    process.off("beforeExit", onIdle);
  }
}

/**
 * Sets `SHELL` if necessary. Without it, oclif looks up the user's shell and ends with a stack trace if the user has no
 * entry in the list of accounts. This happens in a container under an arbitrary user id, as in Kubernetes and
 * OpenShift.
 */
function nameShell(): void {
  if (process.env.SHELL !== undefined) return;
  try {
    userInfo();
  } catch {
    process.env.SHELL = "/bin/sh";
  }
}

/** Runs a plain command directly, because oclif's `run` first loads the code for help and version, which takes time. */
async function dispatch(args: string[], config: Config): Promise<void> {
  const command = commandOf(args, config);
  const options = command?.rest ?? [];
  const own = options.includes("--") ? options.slice(0, options.indexOf("--")) : options;
  if (command !== undefined && !own.includes("--help")) await config.runCommand(command.id, command.rest);
  // A topic alone, such as `token`, shows the help of its commands.
  else if (args.length === 1 && config.findTopic(args[0] ?? "") !== undefined) await run([...args, "--help"], config);
  else await run([...args], config);
}
