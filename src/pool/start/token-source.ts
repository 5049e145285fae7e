import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { parseObject } from "../../config/values/json.js";
import { FleetError, quote } from "../../errors.js";
import type { NamedSource, RecordedSource, ServerRecord, TokenSource } from "../../model/server.js";
import { tokenSourceFromConfig } from "../../models/github-token.js";
import { homeOf, replaceServerFile, unwritable } from "../../runtime/files/server-folder.js";
import { readIfThere } from "../../store/file/failures.js";
import type { PoolContext } from "./surroundings.js";

/*
 * A server's record contains at most the kind of the source of its GitHub token, such as a variable or a file. It does
 * not name the variable or the file, because somebody other than the fleet may be able to write records. The complete
 * source is in the configuration, or if it was passed to the server's start, in a file beside the server's home.
 */

type Known = Pick<ServerRecord, "id" | "user" | "isolation" | "token">;

function pathOf(home: string): string {
  return join(dirname(home), "token-source.json");
}

/** The kind of a source: the only part that a record contains. */
export function kindOf({ from }: TokenSource): RecordedSource {
  return { from };
}

/**
 * Stores the token source that was passed to a server's start in the file beside the server's home. The caller must
 * hold the claim on the server.
 */
export function noteTokenSource(home: string, source: TokenSource): void {
  const path = pathOf(home);
  try {
    replaceServerFile(path, `${JSON.stringify(source)}\n`);
  } catch (cause) {
    throw unwritable(path, cause);
  }
}

/**
 * The source of a server's GitHub token; null if the server has none.
 *
 * @throws FleetError `FLEET_TOKEN_UNAVAILABLE` when the record names a source that is neither in the configuration nor
 * in the file beside the server's home. In this case, the fleet reads no variable and no file, and runs no program.
 */
export function tokenSourceOf({ config, stateRoot }: PoolContext, server: Known): TokenSource | null {
  const { id, user, isolation, token } = server;
  // On a shared server, each session brings its owner's GitHub token. The server itself has a token only if it was started
  // with one.
  const configured = isolation === "shared" ? null : tokenSourceFromConfig(config.auth, user);
  if (token === null || isDeepStrictEqual(token, configured)) return configured;
  if (token.from === "caller") return { from: "caller" };
  const path = pathOf(homeOf(stateRoot, id));
  const noted = readIfThere(path, () => readFileSync(path, "utf8"));
  const source = noted === undefined ? undefined : (parseObject(noted) as NamedSource | undefined);
  if (source?.from === token.from) return source;
  const why = "the source of its GitHub token was given at its start, and this host has no note of it";
  throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `Server ${quote(id)} does not start, because ${why}.`, {
    suggestions: ["copilotfleet spawn --user USER --token-env VAR", "Set auth.githubTokenEnv or auth.githubTokenFile."],
  });
}
