import { userInfo } from "node:os";
import { fileURLToPath } from "node:url";
import { Config, flush, run } from "@oclif/core";
import { commandOf } from "./cli/command-id.js";
import { reportError } from "./cli/report.js";

/** The command line: runs one command and sets the exit code. */
export async function main(args: string[]): Promise<void> {
  // A reader that has seen enough (`copilotfleet logs … | head`) closes the pipe: the end of the work, not an error.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    process.exit(0);
  });
  nameShell();
  const config = await Config.load({ root: fileURLToPath(new URL("..", import.meta.url)) });
  try {
    await dispatch(args, config);
    await flush();
  } catch (error) {
    process.exitCode = reportError(error, { args, config });
  }
}

/**
 * oclif asks for the user's shell when `SHELL` is not set, and ends with a stack trace where the user has no entry in the
 * list of users: in a container under any user id, as Kubernetes and OpenShift run them.
 */
function nameShell(): void {
  if (process.env.SHELL !== undefined) return;
  try {
    userInfo();
  } catch {
    process.env.SHELL = "/bin/sh";
  }
}

/** A plain command goes straight to its class: oclif's `run` loads help and version handling first, which takes time. */
async function dispatch(args: string[], config: Config): Promise<void> {
  const command = commandOf(args, config);
  const options = command?.rest ?? [];
  const own = options.includes("--") ? options.slice(0, options.indexOf("--")) : options;
  if (command !== undefined && !own.includes("--help")) await config.runCommand(command.id, command.rest);
  // The words of a topic alone ask what there is.
  else if (args.length === 1 && config.findTopic(args[0] ?? "") !== undefined) await run([...args, "--help"], config);
  else await run([...args], config);
}
