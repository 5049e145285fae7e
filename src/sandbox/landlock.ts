import { type ExecFileException, execFile } from "node:child_process";
import { statSync } from "node:fs";
import { FleetError, quote, systemCode } from "../base/errors.js";
import type { Protection } from "../base/sandbox.js";
import { system } from "../base/system/system.js";
import { machineProgram, nativeFile, unusable } from "./programs.js";
import type { Attempt } from "./sandbox.js";

/*
 * Landlock restricts the process that asks for it, and all processes that it starts. The process keeps its PID, so to
 * the rest of the fleet, a server looks the same as without a sandbox. Source: the kernel's
 * Documentation/userspace-api/landlock.rst.
 */

/** The deadline of a trial, in milliseconds. A trial usually takes a few milliseconds. */
const TRIAL_MS = 10_000;

/** The protections that neither of these two ways to use Landlock gives. */
const NEVER: readonly Protection[] = ["metadata", "process-list", "ipc", "network", "resources"];

/**
 * Why Landlock alone cannot restrict root: root could change the modes of all files on the machine. Null for
 * other accounts.
 */
const problemOfRoot =
  process.getuid?.() === 0
    ? "Landlock alone cannot restrict root (run the fleet as an ordinary user, or install bubblewrap)"
    : null;

/** The sandbox of our own launcher alone, or the reason why it is not enough here. */
export function launcherAlone(launcher: Attempt): Attempt {
  return problemOfRoot === null || "why" in launcher ? launcher : { why: problemOfRoot };
}

/** The launcher begins its messages with this text. */
const ANSWER = "copilotfleet-sandbox: ";
/** Matches Node.js's message about a program that does not exist. */
const MISSING = /^spawn .* ENOENT$/;

/**
 * Tries the sandbox of our own launcher (`native/launcher.c`).
 *
 * @throws FLEET_SANDBOX_UNUSABLE if the launcher exists and does not run. An agent may be the cause, because Landlock
 * does not restrict chmod, so this must not lead to a weaker sandbox.
 */
export async function tryLauncher(): Promise<Attempt> {
  const launcher = nativeFile("copilotfleet-sandbox");
  if (launcher === null) return { why: "the launcher of the sandbox is not beside this copy of the code" };
  const { output, failure } = await run(launcher, ["--read", "/", "--try"]);
  const [, version, privileged] = /^landlock (\d+)( privileged)?$/m.exec(output) ?? [];
  const abi = Number(version);
  if (failure?.startsWith(ANSWER)) return { why: `the launcher of the sandbox failed (${failure})` };
  if (failure !== null && MISSING.test(failure))
    return { why: `the launcher of the sandbox is not in ${quote(launcher)}` };
  if (failure !== null || Number.isNaN(abi)) throw unusable(launcher, failure ?? `it printed ${quote(output)}`);
  return {
    mode: "landlock",
    // Before ABI 3, Landlock does not restrict truncation, and before ABI 6, it does not restrict signals. The launcher
    // prints `privileged` if root could not drop its capabilities. Root then keeps the system calls that they allow.
    not: [
      ...(abi < 3 ? (["files"] as const) : []),
      ...(abi < 6 ? (["signals"] as const) : []),
      ...(privileged === undefined ? [] : (["system-calls"] as const)),
      ...NEVER,
    ],
    hasLauncher: true,
    wrap: (command, { read, write, devices }, options = []) => [
      launcher,
      ...options,
      ...read.flatMap((path) => ["--read", path]),
      ...write.flatMap((path) => ["--write", path]),
      ...devices.flatMap((path) => ["--device", path]),
      "--",
      ...command,
    ],
  };
}

/** Tries the sandbox of `setpriv` (util-linux 2.41 or later), for a machine on which the launcher cannot run. */
export async function trySetpriv(): Promise<Attempt> {
  if (problemOfRoot !== null) return { why: problemOfRoot };
  const setpriv = machineProgram("setpriv");
  if (setpriv === null) return { why: "no folder of the machine in PATH has the program setpriv" };
  const base = ["--no-new-privs", "--landlock-access", "fs"];
  const { failure } = await run(setpriv, [...base, ...rule(READ_FOLDER, "/"), "/bin/true"]);
  if (failure !== null) return { why: `setpriv with Landlock failed (${failure})` };
  return {
    mode: "landlock",
    // Landlock itself restricts only abstract Unix sockets, which have no path.
    not: ["signals", "system-calls", "unix-sockets", ...NEVER],
    wrap: (command, { read, write, devices }) => [
      setpriv,
      ...base,
      ...read.flatMap((path) => rule(isFolder(path) ? READ_FOLDER : READ_FILE, path)),
      ...write.flatMap((path) => rule(isFolder(path) ? ALL : WRITE_FILE, path)),
      ...devices.flatMap((path) => rule(WRITE_FILE, path)),
      ...command,
    ],
  };
}

// For a file, the kernel refuses a rule with access rights that only folders have.
const READ_FILE = "execute,read-file";
const READ_FOLDER = `${READ_FILE},read-dir`;
const WRITE_FILE = `${READ_FILE},write-file,truncate`;
const ALL = "";
const isFolder = (path: string) => statSync(path).isDirectory();
const rule = (access: string, path: string) => ["--landlock-rule", `path-beneath:${access}:${path}`];

const SHORTAGES = ["EAGAIN", "EMFILE", "ENFILE", "ENOMEM"];
/**
 * Matches the messages with which programs report a shortage. The C library and dash use words; our launcher prints the
 * number of the error.
 */
const SHORTAGE_TEXT =
  /Resource temporarily unavailable|Too many open files|Cannot (allocate memory|fork)|error (11|12|23|24)$/im;

/**
 * Runs a program to its end. `failure` describes what went wrong, and is null on success.
 *
 * @throws FLEET_RUNTIME_UNUSABLE if the program could not run to its end because the machine lacks processes, files,
 * memory or time. Such a trial shows nothing about the sandbox. It must not lead to a weaker sandbox, because then an
 * agent could weaken the sandbox by using up the machine's resources.
 */
export async function run(
  program: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = process.env,
): Promise<{ output: string; failure: string | null }> {
  return await new Promise((resolve, reject) => {
    try {
      execFile(program, args, { timeout: TRIAL_MS, env: { ...env, LC_ALL: "C" } }, (error, stdout, stderr) => {
        const said = stderr.trim().split("\n")[0] ?? "";
        if (error !== null && isShortage(error, stderr)) reject(untried(error, said));
        else resolve({ output: stdout.trim(), failure: error === null ? null : said || error.message });
      });
    } catch (error) {
      reject(untried(error, "")); // Node.js itself has no descriptors left
    }
  });
}

/**
 * Whether the program failed because the machine lacked resources. Also true if the program was killed, perhaps for
 * lack of memory, or failed without a message.
 */
function isShortage(error: ExecFileException, said: string): boolean {
  const isSilent = typeof error.code === "number" && said.trim() === "";
  return (
    error.killed === true ||
    error.signal === "SIGKILL" ||
    isSilent ||
    SHORTAGES.includes(systemCode(error) ?? "") ||
    SHORTAGE_TEXT.test(said) ||
    (/ENOSPC|No space left on device/.test(said) && system().processes.allowsNamespaces())
  );
}

function untried(cause: unknown, said: string): FleetError {
  const why = said || (systemCode(cause) ?? `no end after ${TRIAL_MS / 1_000} seconds`);
  return new FleetError(
    "FLEET_RUNTIME_UNUSABLE",
    `The sandbox of servers could not be tried: this machine has no processes, file descriptors or memory left (${why}).`,
    { cause, suggestions: ["copilotfleet ps", "ulimit -n -u"] },
  );
}
