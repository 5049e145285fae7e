import { statSync } from "node:fs";
import { dirname, isAbsolute, resolve } from "node:path";
import { keyVariables } from "../config/keys.js";
import { userConfigFile } from "../config/load/paths.js";
import type { Config } from "../config/schema.js";
import { shellQuote } from "../config/values/text.js";
import { FleetError, quote } from "../errors.js";
import { contains, type PathsOptions, realPath } from "./paths.js";
import { type Programs, programsOf } from "./programs.js";

/** The server to which folders are granted. */
export interface Grantee {
  /** Null for a shared server. */
  user: string | null;
  home: string;
  cwd: string;
  /** The Copilot program. */
  runtimePath: string;
}

export interface Secrets {
  /** The fleet's state folder. */
  stateRoot: string;
  config: Pick<Config, "auth" | "provider" | "storage" | "storeOptions"> & {
    serve: Pick<Config["serve"], "tls">;
    host: Pick<Config["host"], "tls">;
  };
  env: NodeJS.ProcessEnv;
}

const READ_ONLY = ":ro";
/**
 * Each of these variables names a file with certificates that a server trusts. Servers inherit them from the process
 * that starts them.
 */
const CERTIFICATES = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"];

/**
 * The paths outside of its home that a server can reach: its working folder, `sandbox.binds`, and files with
 * certificates.
 *
 * @throws FLEET_SANDBOX_UNSAFE if one of them would expose the fleet's state or the secrets of its users,
 * or if the server could change a program of the fleet or of the machine
 */
export function grantsOf(
  { user, home, cwd, runtimePath }: Grantee,
  { binds }: Pick<Config["sandbox"], "binds">,
  secrets: Secrets,
): Omit<PathsOptions, "runtimePath" | "own" | "temporary"> {
  const { env } = secrets;
  const hidden = hiddenFolders(secrets).map(realPath);
  const read: string[] = [];
  const write: string[] = [];
  for (const bind of binds) {
    if (user === null && bind.includes("{user}")) continue;
    const isReadOnly = bind.endsWith(READ_ONLY);
    const path = (isReadOnly ? bind.slice(0, -READ_ONLY.length) : bind).replaceAll("{user}", user ?? "");
    (isReadOnly ? read : write).push(path);
  }
  const isHome = resolve(cwd) === resolve(home);
  const folders = { hidden, own: [home, ...write].map(realPath) };
  const checked = (path: string) => checkedPath(path, "sandbox.binds", folders);
  const programs = programsOf(runtimePath);
  const writable = (path: string, setting: string) => {
    const real = checkedPath(path, setting, folders);
    if (!contains(folders.own[0] ?? "", real)) refusePrograms(real, programs, { path, setting });
    return real;
  };
  const certificates = CERTIFICATES.map((name) => ({ name, path: env[name] ?? "" })).filter(({ path }) => isFile(path));
  return {
    hidden,
    read: [...read.map(checked), ...certificates.map(({ name, path }) => checkedPath(path, name, folders))],
    write: [...write.map((path) => writable(path, "sandbox.binds")), ...(isHome ? [] : [writable(cwd, "--cwd")])],
    named: [...read, ...write, cwd, ...certificates.map(({ path }) => path)],
  };
}

function isFile(path: string): boolean {
  try {
    return isAbsolute(path) && statSync(path).isFile();
  } catch {
    return false; // the runtime itself reports a certificate file that it cannot read
  }
}

/**
 * The paths with secrets: the fleet's state and configuration, the shared storage, the folder with the users' token
 * files, the files with keys, and the files that contain the values of configuration keys (`COPILOTFLEET_STORE_FILE` and
 * so on).
 */
function hiddenFolders({ stateRoot, config, env }: Secrets): string[] {
  const { auth, provider, storage, storeOptions, serve, host } = config;
  const tokens = auth.githubTokenFile?.replace(/[^/]*\{user\}.*$/s, "");
  const key = provider === null || provider.type === "echo" ? null : provider.apiKeyFile;
  const appKey = auth.githubApp?.privateKeyFile;
  const keys = [appKey, key, storeOptions.keyFile, serve.tls.key, host.tls.key];
  const all = [stateRoot, dirname(userConfigFile(env)), storage.shared, tokens, ...keys, ...valueFiles(env)];
  return all.flatMap((path) => (path == null || path === "" ? [] : [resolve(path)]));
}

function valueFiles(env: NodeJS.ProcessEnv): (string | undefined)[] {
  return keyVariables().map((variable) => env[`${variable}_FILE`]);
}

/** Paths of folders, with all links resolved. */
interface Folders {
  hidden: readonly string[];
  /** The folders that the server can change. The first is its home. */
  own: readonly string[];
}

/**
 * The path with all links resolved.
 *
 * @throws FLEET_SANDBOX_UNSAFE if the path would expose a hidden folder, or leads through a folder of the server to a
 * place outside
 */
function checkedPath(path: string, setting: string, { hidden, own }: Folders): string {
  const real = realPath(path);
  if (contains(own[0] ?? "", real)) return real;
  const exposed = hidden.find((secret) => contains(real, secret) || contains(secret, real));
  if (exposed !== undefined) {
    const problem = `${setting}: ${quote(path)} would give a server access to ${quote(exposed)}, which contains secrets of the fleet or of other users.`;
    throw new FleetError(
      "FLEET_SANDBOX_UNSAFE",
      `${problem} Allowed: a folder that neither contains it nor is in it.`,
      {
        suggestions: ["Choose a folder that has only files for this user."],
      },
    );
  }
  // The agent can change everything in these folders. So if the path leads through one of them to a place outside, the
  // agent may have made the link that leads out.
  const through = own.find((folder) => isThrough(path, folder) && !contains(folder, real));
  if (through === undefined) return real;
  throw new FleetError(
    "FLEET_SANDBOX_UNSAFE",
    `${setting}: ${quote(path)} leads out of ${quote(through)} by a link that the server itself may have made. Allowed: a path without such a link.`,
    { suggestions: [`ls -ld ${shellQuote(path)}`] },
  );
}

function refusePrograms(real: string, { folders, paths }: Programs, named: { path: string; setting: string }): void {
  const exposed = folders.find((folder) => contains(folder, real)) ?? paths.find((program) => contains(real, program));
  if (exposed === undefined) return;
  const problem = `${named.setting}: ${quote(named.path)} would let a server change ${quote(exposed)}, which has programs or settings of the machine or of the fleet.`;
  throw new FleetError("FLEET_SANDBOX_UNSAFE", `${problem} Allowed: a folder that neither contains it nor is in it.`, {
    suggestions: ["Choose a folder that has only files for this user."],
  });
}

/** Whether a parent of the path is `folder` or below it, after all links in that parent are resolved. */
function isThrough(path: string, folder: string): boolean {
  const parent = dirname(path);
  return parent !== path && (contains(folder, realPath(parent)) || isThrough(parent, folder));
}
