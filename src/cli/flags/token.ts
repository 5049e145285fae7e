import { resolve } from "node:path";
import { isFleetError } from "../../errors.js";
import type { PlainSource } from "../../models/github-token.js";
import { readVariable, usage, variableName } from "./flags.js";

/** The prefixes of GitHub's tokens (docs.github.com, "GitHub's token formats"), and of the fleet's own tokens. */
const TOKEN = /^(gh[pousr]_|github_pat_|cft_)/;

/**
 * Waits for `work`, which reads a token. If it fails because the variable is not set, the error names the flag.
 *
 * @param variable the value of `--token-env`
 */
export async function namingTokenFlag<Result>(
  variable: string | undefined,
  work: Promise<Result>,
  about: Parameters<typeof readVariable>[2],
): Promise<Result> {
  try {
    return await work;
  } catch (error) {
    const isUnset = variable !== undefined && process.env[variable] === undefined;
    if (isUnset && isFleetError(error, "FLEET_TOKEN_UNAVAILABLE")) readVariable("--token-env", variable, about);
    throw error;
  }
}

/**
 * Returns the token source that the flags name; undefined if they name none. Refuses the token itself as a value,
 * because every user of the machine can read command lines.
 */
export function tokenSourceFromFlags(
  variable: string | undefined,
  file: string | undefined,
  example = "GITHUB_TOKEN",
): PlainSource | undefined {
  if (variable !== undefined && file !== undefined)
    throw usage("--token-env and --token-file cannot be used together.", ["Leave out --token-env or --token-file."]);
  if (TOKEN.test(variable ?? file ?? "")) {
    throw usage(
      "--token-env takes the name of a variable and --token-file the path of a file, not the token itself. Revoke " +
        "the token, because others can read it on the command line.",
    );
  }
  if (file !== undefined) {
    if (file === "") throw usage('--token-file "" is empty. Give the path of a file.');
    return { from: "file", path: resolve(file) };
  }
  if (variable === undefined) return undefined;
  return { from: "env", name: variableName("--token-env", variable, example) };
}
