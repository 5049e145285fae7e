import { FleetError, quote } from "../base/errors.js";
import { redact } from "../base/values/text.js";
import type { Environment } from "../config/load/paths.js";
import { type SecretKind, TOKEN } from "./secret.js";

const DEADLINE_MS = 10_000;
const LARGEST_OUTPUT_CHARACTERS = 64 * 1024;
const SHOWN_CHARACTERS = 300;

export interface TokenContext {
  /** The user whose token the command prints. This id replaces `{user}`. Null for a shared server. */
  user: string | null;
  env: Environment;
  signal?: AbortSignal;
  /** The kind of secret that the command prints. Default: a token. */
  kind?: SecretKind;
}

/**
 * Runs a command in a shell and returns the first line that it prints. The command gets no standard input, and finds
 * the user's id in `COPILOTFLEET_USER`. At the deadline, and when the signal aborts, its whole process group is killed.
 */
export async function readTokenCommand(
  command: string,
  { user, env, signal, kind = TOKEN }: TokenContext,
  deadlineMs = DEADLINE_MS,
): Promise<string> {
  const { execa } = await import("execa");
  signal?.throwIfAborted();
  // `detached` starts a process group, because the shell's children have to be killed, too.
  const child = execa(command, {
    shell: true,
    detached: true,
    stdin: "ignore",
    reject: false,
    extendEnv: false,
    env: { ...env, ...(user === null ? {} : { COPILOTFLEET_USER: user }) },
    maxBuffer: LARGEST_OUTPUT_CHARACTERS,
  });
  let late = false;
  const kill = () => {
    if (child.pid !== undefined) killGroup(child.pid);
    // Do not wait for a process that has left the group and still has the pipes open.
    child.stdout.destroy();
    child.stderr.destroy();
  };
  const timer = setTimeout(() => {
    late = true;
    kill();
  }, deadlineMs);
  signal?.addEventListener("abort", kill, { once: true });
  try {
    const result = await child;
    signal?.throwIfAborted();
    const cause = late || !isExit(result.exitCode) ? new NoAnswer() : undefined;
    if (late) throw failed(kind, command, `has not finished after ${deadlineMs / 1000} s`, { ...result, cause });
    if (result.failed) throw failed(kind, command, describeEnd(result), { ...result, cause });
    return result.stdout.split(/\r?\n/, 1)[0] ?? "";
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", kill);
  }
}

/** Whether a command has exited by itself. If a signal ends the command, its shell exits with a code above 128. */
function isExit(exitCode: number | undefined): boolean {
  return exitCode !== undefined && exitCode <= 128;
}

function describeEnd(result: {
  exitCode?: number | undefined;
  signal?: string | undefined;
  isMaxBuffer: boolean;
}): string {
  if (result.isMaxBuffer) return "printed too much";
  if (result.signal !== undefined) return `was ended by ${result.signal}`;
  return result.exitCode === undefined ? "cannot be started" : `failed with exit code ${result.exitCode}`;
}

/** The PID of the child is the id of its group. No other process gets this id while a member is alive. */
function killGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // The group has no processes left.
  }
}

/**
 * The cause of an error about a command that did not exit by itself. Such an error does not show that the source
 * refused to give the secret.
 */
export class NoAnswer extends Error {}

function failed(
  { word, code }: SecretKind,
  command: string,
  what: string,
  { stderr, cause }: { stderr: string; cause: NoAnswer | undefined },
): FleetError {
  // Redact before shortening, because a token that is cut in two no longer looks like a token.
  const said = redact(stderr)
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\s]+/gu, " ")
    .trim()
    .slice(0, SHOWN_CHARACTERS);
  // Do not keep execa's error as the cause, because it contains the standard output, and so perhaps the token.
  return new FleetError(
    code,
    `The ${word} command ${quote(redact(command))} ${what}${said === "" ? "" : `: ${said}`}`,
    { cause, suggestions: [`Run the command by hand. It must print the ${word} on its first line and exit with 0.`] },
  );
}
