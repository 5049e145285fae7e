import { spawnSync } from "node:child_process";
import { systemCode } from "../../errors.js";
import { type Subject, unreadable } from "../unreadable.js";

/** How long a program may take, in milliseconds. A program such as `lsof` waits if a network file system hangs. */
const TIMEOUT_MS = 15_000;
const MOST_OUTPUT_BYTES = 256 * 1024 * 1024;
/** macOS has `lsof` and `sysctl` in folders that are not on every PATH. */
const FOLDERS = "/usr/bin:/bin:/usr/sbin:/sbin";

/** The environment of the program. With it, the output does not depend on the user's language and time zone. */
function environment(platform: NodeJS.Platform): NodeJS.ProcessEnv {
  return {
    PATH: `${process.env.PATH ?? ""}:${FOLDERS}`,
    TZ: "UTC",
    LC_CTYPE: platform === "darwin" ? "UTF-8" : "C.UTF-8",
  };
}

/**
 * Runs a program that may find nothing: `ps` and `lsof` then exit with code 1 and print nothing.
 *
 * @returns its output by line, without empty lines
 * @throws FleetError `FLEET_PROCESSES_UNREADABLE` when it cannot be run, fails, or takes too long
 */
export function lines(
  platform: NodeJS.Platform,
  program: string,
  args: readonly string[],
  what: Subject = "processes",
): string[] {
  const { status, signal, stdout, stderr, error } = spawnSync(program, args, {
    encoding: "utf8",
    env: environment(platform),
    maxBuffer: MOST_OUTPUT_BYTES,
    stdio: ["ignore", "pipe", "pipe"],
    timeout: TIMEOUT_MS,
    killSignal: "SIGKILL",
  });
  if (error !== undefined) {
    const code = systemCode(error);
    const missing = code === "ENOENT";
    const why = missing ? `there is no program ${program}` : `${program} could not be run (${code})`;
    throw unreadable(what, why, missing ? `Install ${program}.` : "ulimit -n; ulimit -u", error);
  }
  const found = stdout.split("\n").filter((line) => line !== "");
  const failed = status === null || (status !== 0 && (status !== 1 || stderr.trim() !== ""));
  if (failed) {
    const how = signal === null ? `failed: ${stderr.trim().split("\n")[0] ?? ""}` : `was ended by ${signal}`;
    throw unreadable(what, `${program} ${how}`, `Find out why this command fails: ${program} ${args.join(" ")}.`);
  }
  return found;
}
