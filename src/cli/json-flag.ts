import type { Config } from "@oclif/core";
import { commandOf } from "./command-id.js";

const SHORT = /^(?:-o=?|--output=)json$/;

/**
 * Replaces `--output json` with `--json` if the command's `--output` accepts `json`. So both have exactly the same
 * effect, and all other code has to know only `--json`.
 */
export function withJsonFlag(args: readonly string[], config: Config): string[] {
  const command = commandOf(args, config);
  const output = command === undefined ? undefined : config.findCommand(command.id)?.flags.output;
  if (output?.type !== "option" || output.options?.includes("json") !== true) return [...args];
  const end = args.indexOf("--");
  const own = end === -1 ? args : args.slice(0, end);
  const replaced = own.flatMap((arg, at) => {
    if (SHORT.test(arg) || (arg === "json" && isOutput(own[at - 1]))) return ["--json"];
    return isOutput(arg) && own[at + 1] === "json" ? [] : [arg];
  });
  return [...replaced, ...args.slice(own.length)];
}

function isOutput(arg: string | undefined): boolean {
  return arg === "-o" || arg === "--output";
}
