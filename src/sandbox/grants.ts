import { dirname, resolve } from "node:path";
import { userConfigFile } from "../config/load/paths.js";
import type { Config } from "../config/schema.js";
import { FleetError, quote } from "../errors.js";
import { contains, type PathsOptions, reals } from "./paths.js";

/** The server to which folders are granted. */
export interface Grantee {
  /** Null for a shared server. */
  user: string | null;
  home: string;
  cwd: string;
}

export interface Secrets {
  /** The fleet's state folder. */
  stateRoot: string;
  config: Pick<Config, "auth" | "provider" | "storage">;
  env: NodeJS.ProcessEnv;
}

const READ_ONLY = ":ro";

/**
 * The folders outside of its home that a server can reach: its working folder and `sandbox.binds`.
 *
 * @throws FLEET_SANDBOX_UNSAFE if one of them would expose the fleet's state or the secrets of its users
 */
export function grantsOf(
  { user, home, cwd }: Grantee,
  { binds }: Pick<Config["sandbox"], "binds">,
  secrets: Secrets,
): Pick<PathsOptions, "hidden" | "read" | "write"> {
  const hidden = hiddenFolders(secrets);
  const read: string[] = [];
  const write: string[] = [];
  if (resolve(cwd) !== resolve(home)) {
    refuseExposure(cwd, hidden, "--cwd");
    write.push(cwd);
  }
  for (const bind of binds) {
    if (user === null && bind.includes("{user}")) continue;
    const isReadOnly = bind.endsWith(READ_ONLY);
    const path = (isReadOnly ? bind.slice(0, -READ_ONLY.length) : bind).replaceAll("{user}", user ?? "");
    refuseExposure(path, hidden, "sandbox.binds");
    (isReadOnly ? read : write).push(path);
  }
  return { hidden, read, write };
}

/** The fleet's state and configuration, the shared storage, and the folder with the users' token files. */
function hiddenFolders({ stateRoot, config: { auth, storage }, env }: Secrets): string[] {
  const tokens = auth.githubTokenFile?.replace(/[^/]*\{user\}.*$/s, "");
  return [stateRoot, dirname(userConfigFile(env)), storage.shared, tokens]
    .filter((path) => path != null)
    .map((path) => resolve(path));
}

function refuseExposure(path: string, hidden: readonly string[], setting: string): void {
  const [real] = reals([path]);
  if (real === undefined) return;
  const exposed = reals(hidden).find((secret) => contains(real, secret) || contains(secret, real));
  if (exposed === undefined) return;
  const problem = `${setting}: ${quote(path)} would give a server access to ${quote(exposed)}, which contains secrets of the fleet or of other users.`;
  throw new FleetError("FLEET_SANDBOX_UNSAFE", `${problem} Allowed: a folder that neither contains it nor is in it.`, {
    suggestions: ["Choose a folder that has only files for this user."],
  });
}
