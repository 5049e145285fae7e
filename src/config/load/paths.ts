import { homedir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { FleetError, quote } from "../../base/errors.js";

const NAME = "copilotfleet";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface PathOptions {
  cwd?: string;
  home?: string;
}

export function homeFolder(env: Environment): string {
  return env.HOME !== undefined && isAbsolute(env.HOME) ? env.HOME : homedir();
}

/**
 * Returns the state folder. Refuses an empty `COPILOTFLEET_HOME`, because a script with an unset variable would
 * otherwise silently work on another fleet.
 */
export function stateRoot(env: Environment, options: PathOptions = {}): string {
  const chosen = env.COPILOTFLEET_HOME;
  if (chosen === undefined) return standardFolder(env, "XDG_STATE_HOME", [".local", "state"], options);
  if (chosen.trim() === "") {
    throw new FleetError(
      "FLEET_CONFIG_INVALID",
      `COPILOTFLEET_HOME is ${quote(chosen)}. Allowed: the path of a folder`,
      { suggestions: ["Unset COPILOTFLEET_HOME, or give it a path."] },
    );
  }
  return resolve(options.cwd ?? process.cwd(), chosen);
}

export function userConfigFile(env: Environment, options: PathOptions = {}): string {
  return join(standardFolder(env, "XDG_CONFIG_HOME", [".config"], options), "config.json");
}

/**
 * Returns the XDG base directory. A relative path in its variable is ignored, as the standard demands
 * (https://specifications.freedesktop.org/basedir-spec/latest/).
 */
function standardFolder(env: Environment, variable: string, fallback: string[], { home }: PathOptions): string {
  const chosen = env[variable];
  if (chosen !== undefined && isAbsolute(chosen)) return join(chosen, NAME);
  return join(home ?? homeFolder(env), ...fallback, NAME);
}
