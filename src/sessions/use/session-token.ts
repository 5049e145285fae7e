import { FleetError, quote } from "../../base/errors.js";
import type { ServerRecord, TokenSource } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { tokenSourceFromConfig } from "../../providers/github-token.js";
import { tokensOf } from "../../providers/github-tokens.js";
import type { SessionsContext } from "../problems.js";

/*
 * The GitHub tokens of sessions. A running server cannot change its own token, and a turn keeps the token with which it
 * began. A session that is opened without a token gets the server's token (all measured with 1.0.85 and 1.0.102). So
 * the fleet gives each session its token when it opens the session, and again before each turn.
 */

type TokenContext = Pick<SessionsContext, "config" | "env"> & { pool: Pick<SessionsContext["pool"], "tokenSourceOf"> };

/** A session, and the server on which it is open. */
interface TokenUser {
  record: Pick<SessionRecord, "owner">;
  server: ServerRecord;
}

/**
 * The GitHub token with which a session's next turn has to run. Null if a model provider is configured, if there is no
 * source of tokens, or if the server's own token came from a variable or from the caller, which supply no newer token.
 *
 * @throws FleetError as `GitHubTokens.get`. The turn must then not run, because the server may have another token.
 */
export async function sessionToken(
  context: TokenContext,
  user: TokenUser,
  signal: AbortSignal,
): Promise<string | null> {
  const { config, env } = context;
  const source = sourceOf(context, user);
  return source === null ? null : await tokensOf(config, env).get(source, { user: user.record.owner, signal });
}

function sourceOf({ config, pool }: TokenContext, { record, server }: TokenUser): TokenSource | null {
  if (config.provider !== null) return null;
  if (server.isolation === "shared") return tokenSourceFromConfig(config.auth, record.owner);
  const source = pool.tokenSourceOf(server);
  return source === null || source.from === "env" || source.from === "caller" ? null : source;
}

/** Forgets the cached token of a session after it was refused. The next turn then reads it from its source again. */
export function forgetToken(context: TokenContext, user: TokenUser): void {
  const source = sourceOf(context, user);
  if (source !== null) tokensOf(context.config, context.env).forget(source, user.record.owner);
}

/**
 * @param cause the error with which the server refused the token. Undefined if a regular answer reported the refusal.
 */
export function tokenRefused(context: TokenContext, user: TokenUser, cause?: unknown): FleetError {
  forgetToken(context, user);
  const message = `GitHub did not accept the token of ${quote(user.record.owner)} for the use of Copilot.`;
  return new FleetError("FLEET_CREDENTIAL_REFUSED", message, {
    cause,
    suggestions: ["Put a new token into its source. The next turn uses it.", "copilotfleet doctor"],
  });
}

/**
 * Checks the server's answer to `session.gitHubAuth.setCredentials`. The server accepts any token, and reports whether
 * GitHub knows it.
 *
 * @throws FleetError `FLEET_CREDENTIAL_REFUSED`
 */
export function assertAccepted(context: TokenContext, user: TokenUser, answer: unknown): void {
  if ((answer as { copilotUserResolved?: unknown } | undefined)?.copilotUserResolved === false)
    throw tokenRefused(context, user);
}

/** The parameters of `session.gitHubAuth.setCredentials`. */
export function credentialsOf(
  { config, env }: Pick<TokenContext, "config" | "env">,
  token: string,
): { credentials: { type: "token"; host: string; token: string } } {
  const [host = "github.com"] = ["COPILOT_GH_HOST", "GH_HOST"]
    .filter((name) => config.runtime.env.includes(name))
    .flatMap((name) => env[name] ?? []);
  return { credentials: { type: "token", host: host.includes("://") ? host : `https://${host}`, token } };
}
