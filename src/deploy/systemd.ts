import { isIP } from "node:net";
import type { Layer } from "../config/layers.js";
import type { Config } from "../config/schema.js";
import { stopGraceSeconds } from "./grace.js";
import { configText, type Settings, settingsOf } from "./settings.js";
import { comment } from "./yaml.js";

export interface SystemdOptions {
  /** The command's absolute path. */
  command: string;
  /** The account that everything runs as. */
  user: string;
}

/** A file to be put where `path` says, with this mode. */
export interface UnitFile {
  path: string;
  mode: string;
  content: string;
}

export interface RenderedSystemd {
  files: UnitFile[];
  notices: string[];
  /** All files in one stream, each below a comment with its path. */
  text: string;
}

const NAME = "copilotfleet";
const UNITS = "/etc/systemd/system";
const SECRETS_FILE = `/etc/${NAME}/secrets.env`;
/** A usage or configuration error is the same at the next start. */
const NO_RESTART_STATUS = "2 3";

/**
 * Unit files for one host. `serve` says nothing to systemd about being ready: the socket takes connections before it is, so
 * nothing has to wait, and `Type=exec` tells a command that cannot be run.
 */
export function renderSystemd(
  { config, given }: { config: Config; given: Layer },
  options: SystemdOptions,
): RenderedSystemd {
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
    "# SIGTERM goes to serve alone, which drains: its servers are in this unit too, and would cut their turns.",
    "# What is left when it has ended, or is late, is killed.",
    "KillMode=mixed",
    "KillSignal=SIGTERM",
    `# drain.timeout is ${config.drain.timeoutMs / 1000} s; the rest is for ending the servers.`,
    `TimeoutStopSec=${stopGraceSeconds(config.drain.timeoutMs)}s`,
    "Restart=on-failure",
    "RestartSec=1s",
    `RestartPreventExitStatus=${NO_RESTART_STATUS}`,
    "# One server that takes all memory must not bring down the others; serve starts it again.",
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

/** Where the socket unit listens: it takes addresses alone, so that under another name `serve` listens itself. */
function streamOf(listen: Config["serve"]["listen"]): string | null {
  if (listen === null || listen.port === 0) return null;
  const host = listen.host === "localhost" ? "127.0.0.1" : listen.host;
  if (isIP(host) === 0) return null;
  return `${isIP(host) === 6 ? `[${host}]` : host}:${listen.port}`;
}

/** systemd holds the front door, so that a restart of `serve` refuses nobody: connections wait in the socket meanwhile. */
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

/** Shared storage is mounted first, where systemd knows how. */
function mountsOf({ storage }: Config): string[] {
  return storage.shared === null ? [] : [`RequiresMountsFor=${quotePath(storage.shared)}`];
}

/** A path as one word of a unit file (systemd.syntax(7), systemd.unit(5) for "%"). */
function quotePath(path: string): string {
  return `"${path.replace(/[\\"]/g, "\\$&").replaceAll("%", "%%")}"`;
}

/** Who runs it, where its state and configuration are, and what it cannot do. */
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
    "# No MemoryDenyWriteExecute (V8 compiles at run time), and no namespace of processes: commands that are run beside",
    "# serve have to see its servers.",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    // Where it is not there, serve says so better than systemd does.
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
    ...(names.length === 0
      ? []
      : [`${SECRETS_FILE} (mode 0600, of root) has to hold ${names.join(", ")}, a line NAME=value for each.`]),
    ...(auth.githubTokenEnv?.includes("{user}") === true
      ? [`The variables of auth.githubTokenEnv belong into ${SECRETS_FILE}, one for each user.`]
      : []),
    ...(storage.shared === null
      ? []
      : [
          `${storage.shared} has to be there, and ${user} has to be able to write in it, on all hosts with the same uid.`,
        ]),
    ...(auth.githubTokenFile === null
      ? []
      : [
          `Token files have to belong to ${user}, with mode 0600, outside of /home, /root and /tmp, which the unit hides.`,
        ]),
    ...(auth.githubTokenCommand === null
      ? []
      : [`auth.githubTokenCommand runs as ${user}, without /home and /root, and with a /tmp of its own.`]),
    `Commands by hand: ${byHand(user, names.length > 0)} ${NAME} ps`,
  ];
}

/** How to run a command with the settings of the unit, those that are secrets among them (systemd-run(1)). */
function byHand(user: string, hasSecrets: boolean): string {
  const settings = [`COPILOTFLEET_HOME=/var/lib/${NAME}/state`, "XDG_CONFIG_HOME=/etc"];
  if (!hasSecrets) return `sudo -u ${user} env ${settings.join(" ")}`;
  const variables = settings.map((setting) => `--setenv=${setting}`).join(" ");
  return `sudo systemd-run --quiet --pipe --wait --uid=${user} --property=EnvironmentFile=${SECRETS_FILE} ${variables}`;
}

function lines(all: readonly string[]): string {
  return `${all.join("\n")}\n`;
}
