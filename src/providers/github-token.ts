import { FleetError, option, quote } from "../base/errors.js";
import type { TokenSource } from "../base/server.js";
import { redact } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { readSecretFile, secretFault, TOKEN } from "./secret.js";
import { readTokenCommand, type TokenContext } from "./token-command.js";

/**
 * The configured source of the user's token, with the user's id in place of `{user}`. Null if no source is configured.
 */
export function tokenSourceFromConfig(auth: Config["auth"], user: string | null): TokenSource | null {
  const source = configuredSource(auth);
  return source === null || source.from === "app" ? source : fillIn(source, user);
}

/** A source that needs nothing else from the configuration: any source but the GitHub App. */
export type PlainSource = Exclude<TokenSource, { from: "app" }>;

/** Reads a token, such as a user's GitHub token or one for a front door. No message quotes the token. */
export async function resolveToken(given: PlainSource, context: TokenContext): Promise<string> {
  context.signal?.throwIfAborted();
  const source = fillIn(given, context.user);
  const raw = await read(source, context);
  // Remove the line break that `echo` writes into a file. `checkToken` refuses other white space.
  return checkToken(raw.replace(/\r?\n$/, ""), nameOf(source));
}

async function read(source: PlainSource, context: TokenContext): Promise<string> {
  switch (source.from) {
    case "env": {
      const value = context.env[source.name];
      if (value !== undefined) return value;
      throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `The environment variable ${source.name} is not set.`, {
        suggestions: [`Set ${source.name} to the token.`],
      });
    }
    case "file":
      return readSecretFile(source.path, TOKEN);
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
  const fault = secretFault(token, TOKEN);
  if (fault === null) return token;
  throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `The token from ${source} ${fault}`, {
    suggestions: [`Put the token, and nothing else, into ${source}.`],
  });
}

function configuredSource(auth: Config["auth"]): TokenSource | null {
  if (auth.githubTokenEnv !== null) return { from: "env", name: auth.githubTokenEnv };
  if (auth.githubTokenFile !== null) return { from: "file", path: auth.githubTokenFile };
  if (auth.githubTokenCommand !== null) return { from: "command", command: auth.githubTokenCommand };
  if (auth.githubApp !== null) return { from: "app" };
  return null;
}

function fillIn(source: PlainSource, user: string | null): PlainSource {
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
      "FLEET_USAGE_INVALID",
      `The user id ${quote(user)} cannot be filled in. Allowed: letters, digits and . _ @ + -`,
    );
  }
  return template.replaceAll("{user}", () => user);
}

function nameOf(source: PlainSource): string {
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
