import { homedir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { FleetError, quote } from "../errors.js";

const NAME = "copilotfleet";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface PathOptions {
  /** What a relative `COPILOTFLEET_HOME` is resolved against. */
  cwd?: string;
  home?: string;
  platform?: NodeJS.Platform;
}

/** The user's home folder: `HOME`, else what the system's user database says. */
export function homeFolder(env: Environment): string {
  return env.HOME !== undefined && isAbsolute(env.HOME) ? env.HOME : homedir();
}

/**
 * The folder that holds all state: `COPILOTFLEET_HOME`, else the platform's folder for state.
 *
 * @throws FleetError `FLEET_CONFIG_INVALID` when `COPILOTFLEET_HOME` is set but empty: a script whose variable was not
 * filled in must not quietly work on another fleet.
 */
export function stateRoot(env: Environment, options: PathOptions = {}): string {
  const chosen = env.COPILOTFLEET_HOME;
  if (chosen === undefined) return standardFolder(env, "XDG_STATE_HOME", [".local", "state"], options);
  if (chosen.trim() === "") {
    throw new FleetError(
      "FLEET_CONFIG_INVALID",
      `COPILOTFLEET_HOME is ${quote(chosen)}: allowed is the path of a folder`,
      {
        suggestions: ["Unset COPILOTFLEET_HOME, or give it a path"],
      },
    );
  }
  return resolve(options.cwd ?? process.cwd(), chosen);
}

/** The user's own configuration file; it need not exist. */
export function userConfigFile(env: Environment, options: PathOptions = {}): string {
  return join(standardFolder(env, "XDG_CONFIG_HOME", [".config"], options), "config.json");
}

/**
 * Linux and the like: the XDG base directories, where a relative path must be ignored
 * (https://specifications.freedesktop.org/basedir-spec/latest/). macOS: Application Support, which is what Apple names
 * for files that an application makes itself; the XDG variables count there too, as nobody sets them by chance.
 */
function standardFolder(env: Environment, variable: string, fallback: string[], options: PathOptions): string {
  const chosen = env[variable];
  if (chosen !== undefined && isAbsolute(chosen)) return join(chosen, NAME);
  const home = options.home ?? homeFolder(env);
  if ((options.platform ?? process.platform) === "darwin") return join(home, "Library", "Application Support", NAME);
  return join(home, ...fallback, NAME);
}
