import { once } from "node:events";
import { userInfo } from "node:os";
import { fileURLToPath } from "node:url";
import { Config, flush } from "@oclif/core";
import { commandOf, standardCommand, withJsonFlag } from "./cli/command-id.js";
import { outputClosed } from "./cli/prompt.js";
import { reportError } from "./cli/report.js";
import { unknownCommand } from "./cli/usage-error.js";

/** Runs one command of the command line and sets the exit code. */
export async function main(given: string[]): Promise<void> {
  // A program that reads our output, such as `head`, may close the pipe early. This is not an error.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    outputClosed();
  });
  nameShell();
  const root = fileURLToPath(new URL("..", import.meta.url));
  // Users cannot add plug-ins, so do not search for them. The search would print a warning if the home folder cannot be
  // read.
  const config = await Config.load({ root, userPlugins: false }).catch((error: unknown) => {
    process.exitCode = reportError(error, { args: given, config: null });
    return null;
  });
  if (config === null) return;
  const args = withJsonFlag(given, config);
  const report = (error: unknown) => {
    process.exitCode = reportError(error, { args, config });
  };
  // Node.js exits silently with code 0 when nothing is left to wait for. If that happens before the command has
  // finished, report it as an error.
  const onIdle = () => report(new Error("The command waits for something that never happens"));
  process.once("beforeExit", onIdle);
  try {
    await dispatch(args, config);
    // If the terminal is gone, the flush never ends, but the stream reports an error. So wait for either of them.
    await Promise.race([flush(), once(process.stdout, "error")]);
  } catch (error) {
    report(error);
  } finally {
    process.off("beforeExit", onIdle);
  }
}

/**
 * Sets `SHELL` if necessary. Without it, oclif looks up the user's shell, and crashes with a stack trace if the user
 * has no entry in the list of accounts. This happens in a container under an arbitrary user id, as in Kubernetes and
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

async function dispatch(args: string[], config: Config): Promise<void> {
  const standard = standardCommand(args, config);
  if (standard === "one line") {
    process.stdout.write(`${config.userAgent}\n`);
    return;
  }
  // Do not use oclif's `run`, because it first loads its own code for help and version, which takes time.
  const command = standard ?? commandOf(args, config);
  if (command === undefined) throw unknownCommand(args, config);
  await config.runCommand(command.id, command.rest);
}
