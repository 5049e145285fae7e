import { chmod, mkdir, writeFile } from "node:fs/promises";
import { isIP } from "node:net";
import { dirname, join } from "node:path";
import { systemCode } from "../base/errors.js";
import type { Config } from "../config/schema.js";
import { badFlag, checkExposed, checkSandbox, graceSecondsOf, type Loaded, weakened } from "./deployment.js";
import { configText, inVariables, type SecretFile, settingsOf } from "./settings.js";
import { commented, fill, fillNotices, inUnit } from "./template.js";

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

/**
 * Renders the unit files for one host. `Type=exec` makes systemd report a command that cannot be run. `Type=notify` is
 * not necessary, because the socket accepts connections before `serve` is ready.
 */
export function renderSystemd({ config, given }: Loaded, options: SystemdOptions) {
  checkSandbox(config, "the unit");
  for (const key of ["listen", "http"] as const) checkExposed(key, config, "so serve would not start");
  const settings = settingsOf(config, given, { without: [], secretPassword: false, moveFiles: false });
  const { secrets, passedOn } = settings;
  const { auth, provider, storage } = config;
  const [door, http] = [streamOf(config.serve.listen), streamOf(config.serve.http)];
  const sockets = [door === null ? [] : "copilotfleet.socket", http === null ? [] : "copilotfleet-http.socket"].flat();
  const named = [...new Set(secrets.filter(({ perUser }) => !perUser).map(({ name }) => name))];
  const ofUsers = secrets.filter(({ perUser }) => perUser).map(({ name }) => name);
  const apiKey = provider === null || provider.type === "echo" ? null : provider.apiKey;
  const view = {
    ...options,
    door,
    http,
    sockets: sockets.join(" "),
    shared: storage.shared,
    drainSeconds: config.drain.timeoutMs / 1000,
    graceSeconds: graceSecondsOf(config),
    credentials: ofUsers.length === 0 ? named : [...named, "users"],
    secretPaths: inVariables(secrets).map((one) => ({ variable: one.variable, credential: credentialOf(one) })),
    named: named.join(", "),
    userNames: ofUsers.join(", "),
    passedOn: passedOn.join(", "),
    keyFiles: [auth.githubToken, auth.githubApp?.privateKey, apiKey].some((source) => source?.from === "file"),
    tokenCommand: auth.githubToken?.from === "command",
    weakened: weakened(settings),
  };
  const units = ["copilotfleet.service", ...sockets, "copilotfleet-gc.service", "copilotfleet-gc.timer"];
  const files: UnitFile[] = [
    ...units.map((name) => [`/etc/systemd/system/${name}`, fill(`systemd/${name}`, view, inUnit)] as const),
    ["/etc/sysusers.d/copilotfleet.conf", fill("systemd/sysusers.conf", view, inUnit)] as const,
    ["/etc/copilotfleet/config.json", configText(settings.values)] as const,
  ].map(([path, content]) => ({ path, mode: "0644", content }));
  const notices = fillNotices("systemd/notices.txt", view);
  const text = commented(notices) + files.map(({ path, content }) => `# ${path}\n${content}`).join("\n");
  return { files, notices, text };
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
 * The name of a secret's file in the folder with the service's credentials. systemd appends "_" and a name to "users".
 */
function credentialOf({ name, perUser }: SecretFile): string {
  return perUser ? `users_${name}` : name;
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
