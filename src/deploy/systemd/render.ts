import { chmod, mkdir, writeFile } from "node:fs/promises";
import { isIP } from "node:net";
import { dirname, join } from "node:path";
import type { Layer } from "../../config/load/layers.js";
import type { Config } from "../../config/schema.js";
import { systemCode } from "../../errors.js";
import { stopGraceSeconds } from "../grace.js";
import { badFlag, checkListen, checkSandbox } from "../problem.js";
import { configText, type Settings, settingsOf } from "../settings.js";
import { comment } from "../yaml.js";
import { noticesOf } from "./notices.js";
import { HTTP_SOCKET, mountsOf, NAME, type SystemdOptions, surroundings } from "./surroundings.js";

/** A file to install at `path` with this mode, which is in octal digits. */
export interface UnitFile {
  path: string;
  mode: string;
  content: string;
}

const UNITS = "/etc/systemd/system";
/** The exit codes of usage and configuration errors. systemd does not restart after them, because they would repeat. */
const NO_RESTART_STATUS = "2 3";

/**
 * Renders the unit files for one host. `Type=exec` makes systemd report a command that cannot be run. `Type=notify` is
 * not necessary, because the socket accepts connections before `serve` is ready.
 */
export function renderSystemd({ config, given }: { config: Config; given: Layer }, options: SystemdOptions) {
  checkSandbox(config, "the unit");
  checkListen(config);
  const settings = settingsOf(config, given, { without: [], secretStore: false, moveFiles: false });
  const sockets = socketsOf(config);
  const names = sockets.map(({ name }) => `${name}.socket`);
  const files: UnitFile[] = [
    unit("service", service(config, settings, options, names)),
    ...sockets.map(({ name, lines: content }) => ({
      ...unit("socket", lines(content)),
      path: `${UNITS}/${name}.socket`,
    })),
    { ...unit("service", gcService(config, settings, options)), path: `${UNITS}/${NAME}-gc.service` },
    { ...unit("timer", GC_TIMER), path: `${UNITS}/${NAME}-gc.timer` },
    {
      path: `/etc/sysusers.d/${NAME}.conf`,
      mode: "0644",
      content: `u ${options.user} - "copilotfleet" /var/lib/${NAME}\n`,
    },
    { path: `/etc/${NAME}/config.json`, mode: "0644", content: configText(settings.values) },
  ];
  const notices = noticesOf(config, settings, options, names);
  const parts = files.map(({ path, content }) => `# ${path}\n${content}`);
  return { files, notices, text: `${notices.map((line) => `${comment(line)}\n`).join("")}${parts.join("\n")}` };
}

function unit(kind: string, content: string): UnitFile {
  return { path: `${UNITS}/${NAME}.${kind}`, mode: "0644", content };
}

function service(config: Config, settings: Settings, options: SystemdOptions, sockets: readonly string[]): string {
  const withSockets = (...keys: string[]) =>
    sockets.length === 0 ? [] : keys.map((key) => `${key}=${sockets.join(" ")}`);
  return lines([
    "[Unit]",
    "Description=Copilot servers for many users (copilotfleet serve)",
    "Wants=network-online.target",
    "After=network-online.target",
    ...withSockets("Requires", "After"),
    ...mountsOf(config),
    "",
    "[Service]",
    "Type=exec",
    `ExecStart=${options.command} serve`,
    ...withSockets("Sockets"),
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
    "# serve may divide the memory, the processes and the processor time of this unit among its servers.",
    "Delegate=memory pids cpu",
    "",
    "[Install]",
    "WantedBy=multi-user.target",
    ...withSockets("Also"),
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

/** The socket units: for the front door, and for the HTTP API. */
function socketsOf({ serve }: Config): { name: string; lines: string[] }[] {
  const [door, http] = [streamOf(serve.listen), streamOf(serve.http)];
  const named = [`FileDescriptorName=${HTTP_SOCKET}`, `Service=${NAME}.service`];
  return [
    ...(door === null ? [] : [{ name: NAME, lines: socket("Front door", door) }]),
    ...(http === null ? [] : [{ name: `${NAME}-http`, lines: socket("HTTP API", http, named) }]),
  ];
}

/**
 * The address for a socket unit. Null if `listen` is not set. A socket unit needs an IP address and a port, so this is
 * also null if `listen` has port 0, or a host name other than `localhost`. In these cases, `serve` itself listens.
 */
function streamOf(listen: Config["serve"]["listen"]): string | null {
  if (listen === null || listen.port === 0) return null;
  const host = listen.host === "localhost" ? "127.0.0.1" : listen.host;
  if (isIP(host) === 0) return null;
  return `${isIP(host) === 6 ? `[${host}]` : host}:${listen.port}`;
}

/**
 * Renders a socket unit. systemd keeps the listening socket open, so the connections of clients wait in it while
 * `serve` restarts.
 */
function socket(title: string, stream: string, more: readonly string[] = []): string[] {
  return [
    "[Unit]",
    `Description=${title} of copilotfleet`,
    "",
    "[Socket]",
    `ListenStream=${stream}`,
    "NoDelay=true",
    ...more,
    "",
    "[Install]",
    "WantedBy=sockets.target",
  ];
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
