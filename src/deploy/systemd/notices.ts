import type { Config } from "../../config/schema.js";
import { inVariables, type Settings } from "../settings.js";
import { weakenedNotices } from "../weakened.js";
import { credentialOf, NAME, OF_USERS, SECRETS, type SystemdOptions, VARIABLES_FILE } from "./surroundings.js";

/** Sentences for the reader of the units: facts to know and things to do. */
export function noticesOf(
  config: Config,
  settings: Settings,
  { user }: SystemdOptions,
  sockets: readonly string[],
): string[] {
  const { auth, provider, storage } = config;
  const names = [...new Set(settings.secrets.filter(({ perUser }) => !perUser).map(({ name }) => name))];
  const ofUsers = settings.secrets.filter(({ perUser }) => perUser).map(({ name }) => name);
  const enabled = [...sockets, `${NAME}.service`, `${NAME}-gc.timer`].join(" ");
  const keyFile = provider?.type === "echo" ? null : (provider?.apiKeyFile ?? null);
  const files = [auth.githubTokenFile, auth.githubApp?.privateKeyFile ?? null, keyFile];
  return [
    `Once the files are in place: systemd-sysusers && systemctl daemon-reload && systemctl enable --now ${enabled}`,
    names.length === 0
      ? []
      : `${SECRETS} (mode 0700, owned by root) must hold ${names.join(", ")}, with the value in a file of each name (mode 0600). A new value takes effect after a restart.`,
    ofUsers.length === 0
      ? []
      : `${SECRETS}/${OF_USERS} must be a folder that holds ${ofUsers.join(", ")}, with a file for each user. A new file takes effect after a restart.`,
    `Variables for the servers (${settings.passedOn.join(", ") || "none is configured"}) belong into ${VARIABLES_FILE}, with a line NAME=value for each.`,
    storage.shared === null
      ? []
      : `On all hosts, ${storage.shared} must exist, and ${user} must have the same uid and be able to write in it.`,
    files.every((file) => file === null)
      ? []
      : `Files with tokens and keys must belong to ${user}, have mode 0600, and be outside of /home, /root and /tmp, which the unit hides.`,
    auth.githubTokenCommand === null
      ? []
      : `auth.githubTokenCommand runs as ${user}, without access to /home and /root, and with a private /tmp.`,
    ...weakenedNotices(settings),
    `To run commands by hand: ${byHand(user, settings)} ${NAME} ps`,
  ].flat();
}

/**
 * The beginning of a command line for use by hand. It sets the same variables as the unit, with the paths of the unit's
 * secrets.
 */
function byHand(user: string, { secrets }: Settings): string {
  const settings = [
    `COPILOTFLEET_HOME=/var/lib/${NAME}/state`,
    "XDG_CONFIG_HOME=/etc",
    ...inVariables(secrets).map(
      (secret) => `${secret.variable}=/run/credentials/${NAME}.service/${credentialOf(secret)}`,
    ),
  ];
  return `sudo -u ${user} env ${settings.join(" ")}`;
}
