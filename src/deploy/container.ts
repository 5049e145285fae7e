/* How a host runs in a container. The `Dockerfile` uses the same paths and the same user, and a test compares them. */

/**
 * The uid of the fleet's account in the image. A usual host has no account with this uid, so outside of the container,
 * files on a volume belong to nobody.
 */
export const UID = 10_001;

/** The ports inside the container. A host listens on them at all addresses of its container. */
export const DOOR_PORT = 4300;
export const HTTP_PORT = 4380;
export const METRICS_PORT = 9464;

/** The container needs an init as PID 1, because PID 1 has to reap orphaned processes and Node does not. */
export const INIT = ["/usr/bin/tini", "--"];
export const COMMAND = "copilotfleet";

/** The mount point of a host's own volume. The host's state is one level deeper, see {@link STATE_FOLDER}. */
export const VOLUME = "/var/lib/copilotfleet";

/**
 * The host's state (`COPILOTFLEET_HOME`). It cannot be the root of the volume, because `fsGroup` lets the group write
 * there, and the fleet refuses a state folder that others may write to. So the fleet creates a folder below the root.
 */
export const STATE_FOLDER = `${VOLUME}/state`;

/** The mount point of the folder that all hosts share. The fleet's folder is below it, as for {@link STATE_FOLDER}. */
export const SHARED_VOLUME = "/var/lib/copilotfleet-shared";
export const SHARED_FOLDER = `${SHARED_VOLUME}/fleet`;

/**
 * The value of `XDG_CONFIG_HOME`. With it, commands that are run by hand in the container also find the configuration.
 */
export const CONFIG_HOME = "/etc";
export const CONFIG_FOLDER = `${CONFIG_HOME}/copilotfleet`;
export const CONFIG_FILE = "config.json";

/** The mount points of the folders with secrets: the fleet's own, and those with one file for each user. */
export const SECRETS_FOLDER = "/run/secrets/copilotfleet";
export const USER_SECRETS_FOLDER = "/run/secrets/copilotfleet-users";

/** The path of a secret in the container. It contains "{user}" if there is a file for each user. */
export function secretPath({ name, perUser }: { name: string; perUser: boolean }): string {
  return `${perUser ? USER_SECRETS_FOLDER : SECRETS_FOLDER}/${name}`;
}

/**
 * The only folder to which the container writes, besides the volumes (checked with strace on `serve`, servers and
 * commands, runtime 1.0.85). `HOME` is this folder, because oclif and tools may write files there. Servers have their
 * own homes.
 */
export const SCRATCH = "/tmp";

/** Variables that are the same in every container. */
export const ENVIRONMENT: Readonly<Record<string, string>> = {
  COPILOTFLEET_HOME: STATE_FOLDER,
  XDG_CONFIG_HOME: CONFIG_HOME,
  HOME: SCRATCH,
  COPILOTFLEET_SERVE_LISTEN: `0.0.0.0:${DOOR_PORT}`,
  COPILOTFLEET_SERVE_METRICS: `0.0.0.0:${METRICS_PORT}`,
};

/** The variables of a container that serves the HTTP API. @param origins the origins at which clients reach the API */
export function httpEnvironment(origins: readonly string[]): Record<string, string> {
  return {
    COPILOTFLEET_SERVE_HTTP: `0.0.0.0:${HTTP_PORT}`,
    COPILOTFLEET_HTTP_ORIGINS: [...new Set(origins)].join(","),
  };
}
