import { closeSync, constants, fstatSync, openSync, readFileSync, type Stats } from "node:fs";
import * as v from "valibot";
import { FleetError, type FleetErrorCode, quote, type Suggestion, systemCode } from "../base/errors.js";
import type { NamedSource } from "../base/server.js";
import { holdsGitHubToken, isObject, printable, redact, shellQuote } from "../base/values/text.js";
import type { Environment } from "./load/paths.js";

/* Secrets by reference: the configuration names a variable, a file or a command, and never contains the secret. */

/** A reference as a configuration file contains it. */
export type SecretReference = { env: string } | { file: string } | { command: string };

const VARIABLE = /^[A-Za-z_][A-Za-z0-9_]*$/;

/** The name of a variable, and not a token in its place. */
export const isVariable = (name: string) => VARIABLE.test(name) && !holdsGitHubToken(name);

const isFilled = (text: string) => text.trim() !== "" && !text.includes("\0");

function sourceOf(value: unknown, isOfUser: boolean): NamedSource | null {
  const entries = isObject(value) ? Object.entries(value) : [];
  const [[kind, text] = []] = entries;
  if (entries.length !== 1 || typeof text !== "string" || !isFilled(text)) return null;
  if (kind === "file") return { from: "file", path: text };
  if (kind === "command") return { from: "command", command: text };
  const isName = kind === "env" && isVariable(isOfUser ? text.replaceAll("{user}", "u") : text);
  return isName ? { from: "env", name: text } : null;
}

/**
 * A reference to a secret. @param isOfUser whether `{user}` in it stands for the id of the user who needs the secret
 */
export const secret = (example: SecretReference, isOfUser = false) => {
  const shown = JSON.stringify(example).replace(":", ": ");
  const allowed = `{"env": "NAME"}, {"file": "PATH"} or {"command": "…"}, such as ${shown}`;
  return v.pipe(
    v.custom<SecretReference>((value) => sourceOf(value, isOfUser) !== null, allowed),
    v.transform((reference) => sourceOf(reference, isOfUser) as NamedSource),
    v.metadata({ allowed, example, concealed: true, json: true, path: "in-reference", kind: "secret" }),
  );
};

const LONGEST_SECRET = 4096;
const LARGEST_FILE_BYTES = 64 * 1024;

/** A kind of secret: its word in messages, and the code of the errors about it. */
export interface SecretKind {
  word: string;
  code: FleetErrorCode;
  /** Whether the secret has several lines. */
  isText?: boolean;
  /** The next step for a user who needs no such secret. */
  advice?: Suggestion;
}
export const TOKEN: SecretKind = { word: "token", code: "FLEET_TOKEN_UNAVAILABLE" };
export const KEY: SecretKind = {
  word: "key",
  code: "FLEET_MODEL_UNCONFIGURED",
  advice: "Set provider.apiKey to null for a service that needs none.",
};
export const PRIVATE_KEY: SecretKind = { ...TOKEN, word: "private key", isText: true };

export interface SecretContext {
  env: Environment;
  /** The user whose secret a command prints, in `COPILOTFLEET_USER`. */
  user?: string | null;
  signal?: AbortSignal | undefined;
}

/**
 * Reads a secret from its source. No message contains the secret.
 *
 * @throws FleetError when the source cannot be read, or contains something else than a secret of this kind
 */
export async function readSecret(source: NamedSource, kind: SecretKind, context: SecretContext): Promise<string> {
  // Remove the line break that `echo` writes into a file. `secretFault` refuses other white space.
  const secret = (await readSource(source, kind, context)).replace(/\r?\n$/, "");
  const fault = secretFault(secret, kind);
  if (fault === null) return secret;
  const name = nameOfSource(source);
  const { word, code, advice } = kind;
  throw new FleetError(code, `The ${word} from ${name} ${fault}`, {
    suggestions: [`Put the ${word}, and nothing else, into ${name}.`, ...(advice === undefined ? [] : [advice])],
  });
}

async function readSource(source: NamedSource, kind: SecretKind, context: SecretContext): Promise<string> {
  if (source.from === "file") {
    const rule = { code: kind.code, mostBytes: LARGEST_FILE_BYTES, isPrivate: true };
    return readNamedFile(source.path, `The ${kind.word} file ${printable(source.path)}`, rule);
  }
  if (source.from === "command") return await runSecretCommand(source.command, kind, context);
  const value = context.env[source.name];
  if (value !== undefined) return value;
  throw new FleetError(kind.code, `The environment variable ${source.name} is not set.`, {
    suggestions: [`Set ${source.name} to the ${kind.word}.`, ...(kind.advice === undefined ? [] : [kind.advice])],
  });
}

/** Describes a source for a message. Hides parts of a command that may be secrets. */
export function nameOfSource(source: NamedSource): string {
  switch (source.from) {
    case "env":
      return source.name;
    case "file":
      return `the file ${quote(source.path)}`;
    case "command":
      return `the command ${quote(redact(source.command))}`;
  }
}

/**
 * Whether anybody but its owner can use a file with a secret. A group may read a file of root, because root decides who
 * is in the group. systemd (`LoadCredential=`) and Kubernetes (Secrets with `fsGroup`) provide secrets in this way.
 */
export function isExposed({ mode, uid }: Pick<Stats, "mode" | "uid">, euid = process.geteuid?.()): boolean {
  const isGivenByRoot = uid === 0 && euid !== 0;
  return (mode & (isGivenByRoot ? 0o037 : 0o077)) !== 0;
}

/** The fault of a secret, as the end of a sentence; null if the secret has no fault. Never quotes the secret. */
export function secretFault(secret: string, { word, isText = false }: SecretKind): string | null {
  if (secret === "") return "is empty";
  if (isText) return null;
  if (secret.length > LONGEST_SECRET) return `has ${secret.length} characters. Allowed: at most ${LONGEST_SECRET}`;
  if (/^[\x21-\x7e]+$/.test(secret)) return null;
  return `contains spaces, line breaks or other characters that no ${word} has`;
}

interface FileRule {
  /** The code of the errors. */
  code: FleetErrorCode;
  mostBytes: number;
  /** Whether the file contains a secret, so that only its owner may use it. */
  isPrivate: boolean;
}

/**
 * Reads a file that the configuration names. This function is synchronous, because commands wait for it at their start.
 *
 * @param subject the beginning of messages: "The key file /run/key"
 * @throws FleetError if the file cannot be read, is not a regular file, is too large, or can be used by others
 */
export function readNamedFile(path: string, subject: string, { code, mostBytes, isPrivate }: FileRule): string {
  const shown = shellQuote(printable(path));
  const refuse = (problem: string, allowed: string, suggestion: Suggestion, cause?: unknown) =>
    new FleetError(code, `${subject} ${problem}. Allowed: ${allowed}`, { suggestions: [suggestion], cause });
  let handle: number;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer indefinitely.
    handle = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const reason = systemCode(error) ?? (error instanceof Error ? error.message : String(error));
    const problem = reason === "ENOENT" ? "does not exist" : `cannot be read: ${reason}`;
    throw refuse(problem, "a file that this account can read", `ls -lL ${shown}`, error);
  }
  try {
    // Check the open file, not the path, because another file may replace it at that path.
    const stats = fstatSync(handle);
    if (!stats.isFile() || stats.size > mostBytes)
      throw refuse("cannot be used", `a regular file of at most ${mostBytes} bytes`, `ls -lL ${shown}`);
    if (isPrivate && isExposed(stats)) {
      const mode = (stats.mode & 0o777).toString(8).padStart(3, "0");
      throw refuse(
        `has mode ${mode}, so that others can use it`,
        "a file that only its owner can use",
        `chmod 600 ${shown}`,
      );
    }
    return readFileSync(handle, "utf8");
  } finally {
    closeSync(handle);
  }
}

/** Reads the value of a key from the file that a variable or another key names. */
export function readValueFile(path: string, name: string): string {
  const subject = `The file ${printable(path)}, which ${name} names,`;
  const text = readNamedFile(path, subject, {
    code: "FLEET_CONFIG_INVALID",
    mostBytes: LARGEST_FILE_BYTES,
    isPrivate: true,
  });
  // Remove the line break that `echo` writes at the end of a file.
  return text.replace(/\r?\n$/, "");
}

interface Result {
  exitCode?: number | undefined;
  signal?: string | undefined;
  isMaxBuffer: boolean;
  failed: boolean;
  stdout: string;
  stderr: string;
}

const DEADLINE_MS = 10_000;
const SHOWN_CHARACTERS = 300;

/**
 * Runs a command in a shell and returns the first line that it prints, or all lines of a text. The command gets no
 * standard input, and finds the user's id in `COPILOTFLEET_USER`. At the deadline, and when the signal aborts, its
 * whole process group is killed.
 */
export async function runSecretCommand(
  command: string,
  kind: SecretKind,
  { user = null, env, signal }: SecretContext,
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
    maxBuffer: LARGEST_FILE_BYTES,
  });
  let late = false;
  const kill = () => {
    try {
      // The PID of the child is the id of its group. No other process gets this id while a member is alive.
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    } catch {
      // The group has no processes left.
    }
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
    const result: Result = await child;
    signal?.throwIfAborted();
    // If a signal ends the command, its shell exits with a code above 128.
    const cause = late || (result.exitCode ?? 255) > 128 ? new NoAnswer() : undefined;
    if (late) throw failed(kind, command, `has not finished after ${deadlineMs / 1000} s`, { ...result, cause });
    if (result.failed) throw failed(kind, command, describeEnd(result), { ...result, cause });
    return kind.isText === true ? result.stdout : (result.stdout.split(/\r?\n/, 1)[0] ?? "");
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", kill);
  }
}

function describeEnd({ exitCode, signal, isMaxBuffer }: Result): string {
  if (isMaxBuffer) return "printed too much";
  if (signal !== undefined) return `was ended by ${signal}`;
  return exitCode === undefined ? "cannot be started" : `failed with exit code ${exitCode}`;
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
