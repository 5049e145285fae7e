import { redact } from "../config/text.js";
import { FleetError, quote } from "../errors.js";

const DEADLINE_MS = 10_000;
const LARGEST_OUTPUT_CHARACTERS = 64 * 1024;
const SHOWN_CHARACTERS = 300;

export interface TokenCommandOptions {
  user: string | null;
  env: Readonly<Record<string, string | undefined>>;
  signal?: AbortSignal;
  /** 10 s by default. */
  deadlineMs?: number;
}

/**
 * The first line that a command prints, run by the shell. It gets no standard input, the caller's environment, and the
 * user's id in `COPILOTFLEET_USER`.
 *
 * @throws FleetError `FLEET_TOKEN_UNAVAILABLE` when it fails, or has not finished after 10 s. When `signal` aborts, its
 * reason. In both cases the command and what it started are killed.
 */
export async function readTokenCommand(command: string, options: TokenCommandOptions): Promise<string> {
  const deadlineMs = options.deadlineMs ?? DEADLINE_MS;
  const { execa } = await import("execa");
  options.signal?.throwIfAborted();
  // A group of its own, as a shell that is killed alone leaves what it started, which then holds the pipes open.
  const child = execa(command, {
    shell: true,
    detached: true,
    stdin: "ignore",
    reject: false,
    extendEnv: false,
    env: { ...options.env, ...(options.user === null ? {} : { COPILOTFLEET_USER: options.user }) },
    maxBuffer: LARGEST_OUTPUT_CHARACTERS,
  });
  let late = false;
  const kill = () => {
    if (child.pid !== undefined) killGroup(child.pid);
    // What has left the group may still hold the pipes, and must not be waited for.
    child.stdout.destroy();
    child.stderr.destroy();
  };
  const timer = setTimeout(() => {
    late = true;
    kill();
  }, deadlineMs);
  options.signal?.addEventListener("abort", kill, { once: true });
  try {
    const result = await child;
    options.signal?.throwIfAborted();
    if (late) throw failed(command, `has not finished after ${deadlineMs / 1000} s`, result.stderr);
    if (result.failed) throw failed(command, describeEnd(result), result.stderr);
    return result.stdout.split(/\r?\n/, 1)[0] ?? "";
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener("abort", kill);
  }
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

/** The child leads its group: the group's id is its pid, which no other process gets while a member lives. */
function killGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // Nobody is left in it.
  }
}

function failed(command: string, what: string, stderr: string): FleetError {
  // Redacted before it is shortened, since a token that is cut in two no longer looks like one.
  const said = redact(stderr)
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\s]+/gu, " ")
    .trim()
    .slice(0, SHOWN_CHARACTERS);
  // execa's own error is not kept as the cause: it carries the standard output, and so perhaps the token.
  return new FleetError(
    "FLEET_TOKEN_UNAVAILABLE",
    `The token command ${quote(redact(command))} ${what}${said === "" ? "" : `: ${said}`}`,
    { suggestions: ["Run the command by hand: it must print the token on its first line and exit with 0"] },
  );
}
