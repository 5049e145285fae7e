/**
 * How a host of the fleet runs in a container, whatever runs the container. The `Dockerfile` has the same paths and the
 * same user; a test compares them.
 */

/** No account of the image and of no usual host: what leaves the container by a volume belongs to nobody. */
export const UID = 10_001;

/** The ports inside the container; both listen on all of its addresses. */
export const DOOR_PORT = 4300;
export const METRICS_PORT = 9464;

/**
 * PID 1 has to reap what is orphaned: servers are detached, and commands that are run inside leave processes behind. Node
 * does not, so an init does.
 */
export const INIT = ["/usr/bin/tini", "--"];
export const COMMAND = "copilotfleet";

/** Where a host's own volume is mounted. Its state is one level deeper, see {@link STATE_FOLDER}. */
export const VOLUME = "/var/lib/copilotfleet";

/**
 * The host's state (`COPILOTFLEET_HOME`). The fleet refuses a state folder that others may write, and that is what the
 * root of a volume is under `fsGroup`; so it makes a folder of its own in it, with mode 0700.
 */
export const STATE_FOLDER = `${VOLUME}/state`;

/** Where the folder is mounted that all hosts share, and the folder in it that the fleet makes, for the same reason. */
export const SHARED_VOLUME = "/var/lib/copilotfleet-shared";
export const SHARED_FOLDER = `${SHARED_VOLUME}/fleet`;

/** `XDG_CONFIG_HOME`, and the user's configuration file that follows from it: also for commands run by hand inside. */
export const CONFIG_HOME = "/etc";
export const CONFIG_FOLDER = `${CONFIG_HOME}/copilotfleet`;
export const CONFIG_FILE = "config.json";

/** Where files with GitHub tokens are mounted. */
export const TOKENS_FOLDER = "/run/secrets/copilotfleet";

/**
 * The only other place that is written: nothing else of the root file system is (seen with strace on `serve`, servers and
 * commands, runtime 1.0.85). `HOME` is here for what oclif and tools might leave; servers have homes of their own.
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
