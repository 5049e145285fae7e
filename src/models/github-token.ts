import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { isExposed } from "../config/load/value-file.js";
import type { Config } from "../config/schema.js";
import { printable, redact, shellQuote } from "../config/values/text.js";
import { FleetError, option, quote, systemCode } from "../errors.js";
import type { TokenSource } from "../model/server.js";
import { readTokenCommand, type TokenContext } from "./token-command.js";

const LONGEST_TOKEN = 4096;
const LARGEST_FILE_BYTES = 64 * 1024;

/** The configured source of the user's token, with the user's id for `{user}`. Null if no source is configured. */
export function tokenSourceFromConfig(auth: Config["auth"], user: string | null): TokenSource | null {
  const source = configuredSource(auth);
  return source === null ? null : fillIn(source, user);
}

/** Reads a token, such as a user's GitHub token or one for a front door. No message quotes the token. */
export async function resolveToken(given: TokenSource, context: TokenContext): Promise<string> {
  context.signal?.throwIfAborted();
  const source = fillIn(given, context.user);
  const raw = await read(source, context);
  // Remove the line break that `echo` writes into a file. `checkToken` refuses other white space.
  return checkToken(raw.replace(/\r?\n$/, ""), nameOf(source));
}

async function read(source: TokenSource, context: TokenContext): Promise<string> {
  switch (source.from) {
    case "env": {
      const value = context.env[source.name];
      if (value !== undefined) return value;
      throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `The environment variable ${source.name} is not set.`, {
        suggestions: [`Set ${source.name} to the token.`],
      });
    }
    case "file":
      return readTokenFile(source.path);
    case "command":
      return readTokenCommand(source.command, context);
    case "caller":
      throw new FleetError(
        "FLEET_TOKEN_UNAVAILABLE",
        "The program that started this server gave it a token in memory, and that token is not recorded",
        { suggestions: [`Start the server from that program, or name a source with ${option("token")}.`] },
      );
  }
}

function checkToken(token: string, source: string): string {
  const fault =
    token === ""
      ? "is empty"
      : token.length > LONGEST_TOKEN
        ? `has ${token.length} characters. Allowed: at most ${LONGEST_TOKEN}`
        : /^[\x21-\x7e]+$/.test(token)
          ? null
          : "contains spaces, line breaks or other characters that no token has";
  if (fault === null) return token;
  throw new FleetError("FLEET_TOKEN_INVALID", `The token from ${source} ${fault}`, {
    suggestions: [`Put the token, and nothing else, into ${source}.`],
  });
}

function configuredSource(auth: Config["auth"]): TokenSource | null {
  if (auth.githubTokenEnv !== null) return { from: "env", name: auth.githubTokenEnv };
  if (auth.githubTokenFile !== null) return { from: "file", path: auth.githubTokenFile };
  if (auth.githubTokenCommand !== null) return { from: "command", command: auth.githubTokenCommand };
  return null;
}

function fillIn(source: TokenSource, user: string | null): TokenSource {
  switch (source.from) {
    case "env": {
      const name = fill(source.name, user);
      if (/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) return { from: "env", name };
      throw new FleetError(
        "FLEET_TOKEN_UNAVAILABLE",
        `${quote(redact(name))} cannot be an environment variable. Allowed: letters, digits and "_"`,
        { suggestions: ["Use auth.githubTokenFile or auth.githubTokenCommand, where any user id can be filled in."] },
      );
    }
    case "file":
      return { from: "file", path: fill(source.path, user) };
    case "command":
      return { from: "command", command: fill(source.command, user) };
    case "caller":
      return source;
  }
}

function fill(template: string, user: string | null): string {
  if (!template.includes("{user}")) return template;
  if (user === null) {
    throw new FleetError(
      "FLEET_TOKEN_UNAVAILABLE",
      `A shared server has no user to fill into ${quote(redact(template))}`,
      { suggestions: ['Leave "{user}" out of the source, or set isolation to "per-user".'] },
    );
  }
  // Check the id again, because it may become part of a shell command or a path.
  if (!/^[\p{L}\p{M}\p{N}_@+][\p{L}\p{M}\p{N}._@+-]*$/u.test(user)) {
    throw new FleetError(
      "FLEET_USER_INVALID",
      `The user id ${quote(user)} cannot be filled in. Allowed: letters, digits and . _ @ + -`,
    );
  }
  return template.replaceAll("{user}", () => user);
}

function nameOf(source: TokenSource): string {
  switch (source.from) {
    case "env":
      return `the environment variable ${source.name}`;
    case "file":
      return `the file ${quote(source.path)}`;
    case "command":
      return `the command ${quote(redact(source.command))}`;
    case "caller":
      return "the caller";
  }
}

async function readTokenFile(path: string): Promise<string> {
  const name = printable(path);
  let file: FileHandle;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer indefinitely.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    if (systemCode(error) === "ENOENT") {
      throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `The token file ${name} does not exist.`, {
        suggestions: [
          "Give the path of an existing file that contains the token and that only you can read.",
          `ls -l ${shellQuote(dirname(name))}`,
        ],
        cause: error,
      });
    }
    const reason = systemCode(error) ?? "unknown reason";
    throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `The token file ${name} cannot be read: ${reason}`, {
      suggestions: [`Put the token into ${name}.`, `chmod 600 ${shellQuote(name)}`],
      cause: error,
    });
  }
  try {
    // Check the open file, not the path, because another file may replace it at that path.
    const stats = await file.stat();
    if (!stats.isFile() || stats.size > LARGEST_FILE_BYTES) {
      const allowed = `Allowed: a regular file of at most ${LARGEST_FILE_BYTES} bytes`;
      throw new FleetError("FLEET_TOKEN_INVALID", `The token file ${name} cannot hold a token. ${allowed}`);
    }
    if (isExposed(stats)) {
      const mode = (stats.mode & 0o777).toString(8).padStart(3, "0");
      throw new FleetError(
        "FLEET_TOKEN_INVALID",
        `The token file ${name} has mode ${mode}, which lets others use it. Allowed: a file that only its owner can use`,
        { suggestions: [`chmod 600 ${shellQuote(name)}`] },
      );
    }
    return await file.readFile("utf8");
  } finally {
    await file.close();
  }
}
