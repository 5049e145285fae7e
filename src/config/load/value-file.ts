import { closeSync, constants, fstatSync, openSync, readFileSync, type Stats } from "node:fs";
import { FleetError, type Suggestion, systemCode } from "../../errors.js";
import { printable, shellQuote } from "../values/text.js";

const LARGEST_BYTES = 64 * 1024;

/**
 * Whether anybody but its owner can use a file with a secret. A group may read a file of root, because root decides who
 * is in the group. systemd (`LoadCredential=`) and Kubernetes (Secrets with `fsGroup`) provide secrets in this way.
 */
export function isExposed({ mode, uid }: Pick<Stats, "mode" | "uid">, euid = process.geteuid?.()): boolean {
  const isGivenByRoot = uid === 0 && euid !== 0;
  return (mode & (isGivenByRoot ? 0o037 : 0o077)) !== 0;
}

/**
 * Reads the value of a key from the file that a variable names. This function is synchronous, because every command
 * waits for it.
 */
export function readValueFile(path: string, variable: string): string {
  let handle: number;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    handle = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw unusable(path, variable, `cannot be read (${systemCode(error) ?? "unknown reason"})`, "readable", error);
  }
  try {
    const stats = fstatSync(handle);
    if (!stats.isFile() || stats.size > LARGEST_BYTES)
      throw unusable(path, variable, "cannot hold a value", `regular, and of at most ${LARGEST_BYTES} bytes`);
    if (isExposed(stats)) {
      const mode = (stats.mode & 0o777).toString(8).padStart(3, "0");
      throw unusable(path, variable, `has mode ${mode}, which lets others use it`, "for its owner alone");
    }
    // Remove the line break that `echo` writes at the end of a file.
    return readFileSync(handle, "utf8").replace(/\r?\n$/, "");
  } finally {
    closeSync(handle);
  }
}

function unusable(path: string, variable: string, problem: string, allowed: string, cause?: unknown): FleetError {
  const name = printable(path);
  const suggestion: Suggestion = problem.includes("mode")
    ? `chmod 600 ${shellQuote(name)}`
    : `ls -l ${shellQuote(name)}`;
  const message = `The file ${name}, which ${variable} names, ${problem}. Allowed: a file that is ${allowed}`;
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions: [suggestion], cause });
}
