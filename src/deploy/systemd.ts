import { chmod, mkdir, writeFile } from "node:fs/promises";
import { isIP } from "node:net";
import { dirname, join } from "node:path";
import type { Layer } from "../config/load/layers.js";
import type { Config } from "../config/schema.js";
import { systemCode } from "../errors.js";
import { stopGraceSeconds } from "./grace.js";
import { badFlag } from "./problem.js";
import { configText, type Settings, settingsOf } from "./settings.js";
import { comment } from "./yaml.js";

export interface SystemdOptions {
  command: string;
  /** The account that all units run as. */
  user: string;
}

/** A file to install at `path` with this mode, which is in octal digits. */
export interface UnitFile {
  path: string;
  mode: string;
  content: string;
}

const NAME = "copilotfleet";
const UNITS = "/etc/systemd/system";
const SECRETS_FILE = `/etc/${NAME}/secrets.env`;
/** The exit codes of usage and configuration errors. systemd does not restart after them, because they would repeat. */
const NO_RESTART_STATUS = "2 3";

/**
 * Renders the unit files for one host. `serve` need not notify systemd when it is ready, because the socket accepts
 * connections before that. `Type=exec` makes systemd report a command that cannot be run.
 */
export function renderSystemd({ config, given }: { config: Config; given: Layer }, options: SystemdOptions) {
  const settings = settingsOf(config, given, { without: [], secretStore: false, moveTokenFiles: false });
  const stream = streamOf(config.serve.listen);
  const files: UnitFile[] = [
    unit("service", service(config, settings, options, stream !== null)),
    ...(stream === null ? [] : [unit("socket", socket(stream))]),
    { ...unit("service", gcService(config, settings, options)), path: `${UNITS}/${NAME}-gc.service` },
    { ...unit("timer", GC_TIMER), path: `${UNITS}/${NAME}-gc.timer` },
    {
      path: `/etc/sysusers.d/${NAME}.conf`,
      mode: "0644",
      content: `u ${options.user} - "copilotfleet" /var/lib/${NAME}\n`,
    },
    { path: `/etc/${NAME}/config.json`, mode: "0644", content: configText(settings.file) },
  ];
  const notices = noticesOf(config, settings, options, stream !== null);
  const parts = files.map(({ path, content }) => `# ${path}\n${content}`);
  return { files, notices, text: `${notices.map((line) => `${comment(line)}\n`).join("")}${parts.join("\n")}` };
}

function unit(kind: string, content: string): UnitFile {
  return { path: `${UNITS}/${NAME}.${kind}`, mode: "0644", content };
}

function service(config: Config, settings: Settings, options: SystemdOptions, hasSocket: boolean): string {
  return lines([
    "[Unit]",
    "Description=Copilot servers for many users (copilotfleet serve)",
    "Wants=network-online.target",
    "After=network-online.target",
    ...(hasSocket ? [`Requires=${NAME}.socket`, `After=${NAME}.socket`] : []),
    ...mountsOf(config),
    "",
    "[Service]",
    "Type=exec",
    `ExecStart=${options.command} serve`,
    ...(hasSocket ? [`Sockets=${NAME}.socket`] : []),
    ...surroundings(config, settings, options),
    "",
    "# Only serve gets SIGTERM, and it drains. Its servers are in this unit, too, and a SIGTERM would cut their turns.",
    "# systemd kills the remaining processes when serve has ended, or when the time is up.",
    "KillMode=mixed",
    "KillSignal=SIGTERM",
    `# drain.timeout is ${config.drain.timeoutMs / 1000} s; the rest is the time to stop the servers.`,
    `TimeoutStopSec=${stopGraceSeconds(config.drain.timeoutMs)}s`,
    "Restart=on-failure",
    "RestartSec=1s",
    `RestartPreventExitStatus=${NO_RESTART_STATUS}`,
    "# A server that runs out of memory must not end the others. serve starts it again.",
    "OOMPolicy=continue",
    "",
    "[Install]",
    "WantedBy=multi-user.target",
    ...(hasSocket ? [`Also=${NAME}.socket`] : []),
  ]);
}

function gcService(config: Config, settings: Settings, options: SystemdOptions): string {
  return lines([
    "[Unit]",
    "Description=Delete expired sessions of copilotfleet",
    ...mountsOf(config),
    "",
    "[Service]",
    "Type=oneshot",
    `ExecStart=${options.command} gc`,
    ...surroundings(config, settings, options),
  ]);
}

const GC_TIMER = lines([
  "[Unit]",
  "Description=Delete expired sessions of copilotfleet, each hour",
  "",
  "[Timer]",
  "OnCalendar=hourly",
  "RandomizedDelaySec=5min",
  "Persistent=true",
  "",
  "[Install]",
  "WantedBy=timers.target",
]);

/**
 * The address for a socket unit. Null without a front door. Also null if the address has a host name or any free port,
 * because a socket unit needs an IP address and a port. Then `serve` listens itself.
 */
function streamOf(listen: Config["serve"]["listen"]): string | null {
  if (listen === null || listen.port === 0) return null;
  const host = listen.host === "localhost" ? "127.0.0.1" : listen.host;
  if (isIP(host) === 0) return null;
  return `${isIP(host) === 6 ? `[${host}]` : host}:${listen.port}`;
}

/**
 * Renders the socket unit. systemd keeps the listening socket open, so the connections of clients wait in it while `serve`
 * restarts.
 */
function socket(stream: string): string {
  return lines([
    "[Unit]",
    "Description=Front door of copilotfleet",
    "",
    "[Socket]",
    `ListenStream=${stream}`,
    "NoDelay=true",
    "",
    "[Install]",
    "WantedBy=sockets.target",
  ]);
}

/** Makes systemd mount the shared storage first, if it manages that mount. */
function mountsOf({ storage }: Config): string[] {
  return storage.shared === null ? [] : [`RequiresMountsFor=${quotePath(storage.shared)}`];
}

/** Quotes a path as one word of a unit file (systemd.syntax(7); systemd.unit(5) for "%"). */
function quotePath(path: string): string {
  return `"${path.replace(/[\\"]/g, "\\$&").replaceAll("%", "%%")}"`;
}

/** The account, the folders of the state and the configuration, and the restrictions that all services share. */
function surroundings({ storage }: Config, { secrets }: Settings, { user }: SystemdOptions): string[] {
  const needsSecrets = secrets.some(({ required }) => required);
  return [
    `User=${user}`,
    `Group=${user}`,
    `StateDirectory=${NAME}`,
    "StateDirectoryMode=0700",
    `WorkingDirectory=/var/lib/${NAME}`,
    `Environment=COPILOTFLEET_HOME=/var/lib/${NAME}/state XDG_CONFIG_HOME=/etc HOME=/var/lib/${NAME}`,
    `EnvironmentFile=${needsSecrets ? "" : "-"}${SECRETS_FILE}`,
    "UMask=0077",
    "",
    "# MemoryDenyWriteExecute is missing, because V8 compiles at run time. A PID namespace is missing, because commands",
    "# that run outside of this unit must see its servers.",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    // The "-" ignores a missing folder, because `serve` reports it better than systemd does.
    ...(storage.shared === null ? [] : [`ReadWritePaths=-${quotePath(storage.shared)}`]),
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
  ];
}

function noticesOf(config: Config, { secrets }: Settings, { user }: SystemdOptions, hasSocket: boolean): string[] {
  const names = secrets.filter(({ required }) => required).map(({ name }) => name);
  const { auth, storage } = config;
  const enabled = `${hasSocket ? `${NAME}.socket ` : ""}${NAME}.service ${NAME}-gc.timer`;
  return [
    `Once the files are in place: systemd-sysusers && systemctl daemon-reload && systemctl enable --now ${enabled}`,
    names.length === 0
      ? []
      : `${SECRETS_FILE} (mode 0600, owned by root) must hold ${names.join(", ")}, with a line NAME=value for each.`,
    auth.githubTokenEnv?.includes("{user}") === true
      ? `Put the variables of auth.githubTokenEnv into ${SECRETS_FILE}, one for each user.`
      : [],
    storage.shared === null
      ? []
      : `On all hosts, ${storage.shared} must exist, and ${user} must have the same uid and be able to write in it.`,
    auth.githubTokenFile === null
      ? []
      : `Token files must belong to ${user}, have mode 0600, and be outside of /home, /root and /tmp, which the unit hides.`,
    auth.githubTokenCommand === null
      ? []
      : `auth.githubTokenCommand runs as ${user}, without access to /home and /root, and with a private /tmp.`,
    `To run commands by hand: ${byHand(user, names.length > 0)} ${NAME} ps`,
  ].flat();
}

/** The beginning of a command line that is typed by hand. It sets the unit's settings and secrets (systemd-run(1)). */
function byHand(user: string, hasSecrets: boolean): string {
  const settings = [`COPILOTFLEET_HOME=/var/lib/${NAME}/state`, "XDG_CONFIG_HOME=/etc"];
  if (!hasSecrets) return `sudo -u ${user} env ${settings.join(" ")}`;
  const variables = settings.map((setting) => `--setenv=${setting}`).join(" ");
  return `sudo systemd-run --quiet --pipe --wait --uid=${user} --property=EnvironmentFile=${SECRETS_FILE} ${variables}`;
}

function lines(all: readonly string[]): string {
  return `${all.join("\n")}\n`;
}

/** Writes files below a folder, at the paths that they have on the system. Replaces existing files. */
export async function writeFiles(folder: string, files: readonly UnitFile[]): Promise<string[]> {
  const written: string[] = [];
  for (const { path, mode, content } of files) {
    const target = join(folder, path);
    try {
      await mkdir(dirname(target), { recursive: true });
      await writeFile(target, content);
      await chmod(target, Number.parseInt(mode, 8)); // independent of the umask
    } catch (error) {
      const code = systemCode(error);
      if (code === undefined) throw error;
      throw badFlag("output", folder, `a writable folder. ${target} cannot be written (${code})`);
    }
    written.push(target);
  }
  return written;
}
