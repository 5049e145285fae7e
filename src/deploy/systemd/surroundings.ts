import type { Config } from "../../config/schema.js";
import { inVariables, type SecretFile, type Settings } from "../settings.js";

export interface SystemdOptions {
  command: string;
  /** The account that all units run as. */
  user: string;
}

export const NAME = "copilotfleet";
/**
 * The name of the HTTP API's socket among those that systemd hands to `serve`. Any other socket is for the front door.
 */
export const HTTP_SOCKET = "http";
/** The folder with a file for each secret. Only root can read it; systemd gives the services copies. */
export const SECRETS = `/etc/${NAME}/secrets`;
/** The file with the variables that servers get. */
export const VARIABLES_FILE = `/etc/${NAME}/secrets.env`;
/** The name of the credential with the secret files of all users. systemd appends "_" and the name of each file. */
export const OF_USERS = "users";

/**
 * The allowed system calls. `@system-service` contains the calls that a service needs. Landlock and seccomp are listed
 * by name, because systemd before version 256 does not know their group. prlimit64 is listed because it belonged to
 * `@resources` before version 252.
 */
const SYSTEM_CALLS = [
  "SystemCallArchitectures=native",
  "SystemCallFilter=@system-service landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
  "SystemCallFilter=~@privileged @resources",
  "SystemCallFilter=prlimit64",
  "# A tool that tries another call gets an error. Otherwise, the kernel would kill the whole server.",
  "SystemCallErrorNumber=EPERM",
];

/**
 * The restrictions that all services share. `systemd-analyze security` rates them 1.5 or better; a test checks that.
 */
const RESTRICTIONS = [
  "# The sandbox of each server (Landlock) works inside these restrictions, and bubblewrap does not, because it needs",
  "# namespaces. MemoryDenyWriteExecute is missing, because V8 compiles at run time. A PID namespace, PrivateUsers and",
  "# ProcSubset are missing, because commands that run outside of this unit must see its servers. RestrictSUIDSGID is missing,",
  "# because it forbids openat2, by which the launcher of the sandbox follows no links.",
  "NoNewPrivileges=yes",
  "CapabilityBoundingSet=",
  "ProtectSystem=strict",
  "ProtectHome=yes",
  "PrivateTmp=yes",
  "PrivateDevices=yes",
  "ProtectClock=yes",
  "# serve may change the control groups of this unit, and no others. Before systemd 257, it sees all of them.",
  "ProtectControlGroups=private",
  "ProtectHostname=yes",
  "ProtectKernelLogs=yes",
  "ProtectKernelModules=yes",
  "ProtectKernelTunables=yes",
  "# Servers do not see processes of other accounts.",
  "ProtectProc=invisible",
  "RemoveIPC=yes",
  "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
  "RestrictNamespaces=yes",
  "RestrictRealtime=yes",
  "LockPersonality=yes",
  ...SYSTEM_CALLS,
  "# The addresses at which clouds give away the keys of the machine. If the machine asks such an address for names, without",
  "# systemd-resolved, add IPAddressAllow= with it.",
  "IPAddressDeny=link-local 100.100.100.200 fd00:ec2::254 fd20:ce::254",
];

/** Makes systemd mount the shared storage first, if it manages that mount. */
export function mountsOf({ storage }: Config): string[] {
  return storage.shared === null ? [] : [`RequiresMountsFor=${quotePath(storage.shared)}`];
}

/** Quotes a path as one word of a unit file (systemd.syntax(7); systemd.unit(5) for "%"). */
function quotePath(path: string): string {
  return `"${path.replace(/[\\"]/g, "\\$&").replaceAll("%", "%%")}"`;
}

/** The account, the folders of the state and the configuration, the secrets, and the restrictions. */
export function surroundings({ storage }: Config, { secrets }: Settings, { user }: SystemdOptions): string[] {
  return [
    `User=${user}`,
    `Group=${user}`,
    `StateDirectory=${NAME}`,
    "StateDirectoryMode=0700",
    `WorkingDirectory=/var/lib/${NAME}`,
    `Environment=COPILOTFLEET_HOME=/var/lib/${NAME}/state XDG_CONFIG_HOME=/etc HOME=/var/lib/${NAME}`,
    `EnvironmentFile=-${VARIABLES_FILE}`,
    ...secretsOf(secrets),
    "UMask=0077",
    "",
    ...RESTRICTIONS,
    // The "-" ignores a missing folder, because `serve` reports it better than systemd does.
    ...(storage.shared === null ? [] : [`ReadWritePaths=-${quotePath(storage.shared)}`]),
  ];
}

/** Gives the service a copy of each secret, and variables with the paths of the copies ("%d" is their folder). */
function secretsOf(secrets: readonly SecretFile[]): string[] {
  const sources = new Map(
    secrets.map(({ name, perUser }) => (perUser ? [OF_USERS, `${SECRETS}/${OF_USERS}`] : [name, `${SECRETS}/${name}`])),
  );
  return [
    ...[...sources].map(([name, path]) => `LoadCredential=${name}:${path}`),
    ...inVariables(secrets).map((secret) => `Environment=${secret.variable}=%d/${credentialOf(secret)}`),
  ];
}

/** The name of a secret's file in the folder with the service's credentials. */
export function credentialOf({ name, perUser }: SecretFile): string {
  return perUser ? `${OF_USERS}_${name}` : name;
}
