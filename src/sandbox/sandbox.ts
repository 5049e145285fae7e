import { statSync } from "node:fs";
import { dirname, isAbsolute, resolve } from "node:path";
import { FleetError, quote } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import {
  limitsResources,
  NO_SANDBOX,
  type Protection,
  type RestrictedNetwork,
  type SandboxReport,
} from "../base/sandbox.js";
import { shellQuote } from "../base/values/text.js";
import { keyVariables } from "../config/keys.js";
import { userConfigFile } from "../config/load/paths.js";
import type { Config } from "../config/schema.js";
import { tryBwrapAlone, tryBwrapAround } from "./bwrap.js";
import { launcherAlone, tryLauncher, trySetpriv } from "./landlock.js";
import { type ChosenLimits, chooseLimits, launcherOptions, makeGroups, markOption, underShell } from "./limits.js";
import { contains, type Paths, type PathsOptions, realPath, serverPaths } from "./paths.js";
import { noDelayLibrary, type Programs, programsOf } from "./programs.js";
import {
  failureOfNetwork,
  hiddenWith,
  inNamespace,
  refuseWeaker,
  remember,
  Trials,
  tryNamespace,
  wantedNetwork,
} from "./trials.js";

/** The sandbox of one server. */
export interface Sandbox extends SandboxReport {
  /**
   * The command that starts a server inside the sandbox.
   *
   * @param command the program, as an absolute path, and its arguments
   */
  wrap(command: Command, start: Start): Command;
  /** Notes for this host that a server starts in this sandbox. The next start then gets no weaker one. */
  remember(): Promise<void>;
}

interface OwnFolders {
  home: string;
  /** The server can read this folder. It can change it only if it is the home. */
  copilotHome: string;
  temporary: string;
  /** The folder of the server's sessions, if it is outside of the server's home; otherwise null. */
  sessionState: string | null;
}

/** One start of the server. */
interface Start extends OwnFolders {
  port: number;
  /** The limit on file locks by which the fleet finds all processes of the launch. Only our launcher sets it. */
  mark: number;
}

export type Command = readonly [program: string, ...args: string[]];

/** A way to restrict programs on this machine. */
export interface Mechanism extends SandboxReport {
  /** @param options further options of our launcher (`native/launcher.c`), if the wrapped command begins with it */
  wrap(command: Command, paths: Paths, options?: readonly string[]): Command;
  /** Whether the wrapped command begins with our launcher, which also sets limits. */
  hasLauncher?: boolean;
}

/** A mechanism, or the reason why it does not work on this machine. */
export type Attempt = Mechanism | { why: string };

type Mode = Exclude<Config["sandbox"]["mode"], "none">;

/**
 * The mechanisms of each mode, from the strongest to the weakest. Each restricts more than the next one, except that
 * bwrap alone and the launcher alone restrict different things. The order of these two does not matter: where both
 * work, bwrap around the launcher works, too.
 */
const MECHANISMS: Readonly<Record<Mode, readonly ((launcher: Attempt) => Attempt | Promise<Attempt>)[]>> = {
  auto: [tryBwrapAround, launcherAlone, tryBwrapAlone, trySetpriv],
  landlock: [launcherAlone, trySetpriv],
  bwrap: [tryBwrapAround, tryBwrapAlone],
};

const trials = new Trials<Mode, readonly Attempt[]>();

/**
 * The results of the trials on this machine, from the strongest mechanism to the first one that works. Each process
 * tries them itself, because only a trial shows whether the kernel and its policies allow a mechanism.
 *
 * @throws FLEET_RUNTIME_UNUSABLE if the machine lacks the processes, files, memory or time for a trial
 */
export async function tryMechanisms(mode: Mode): Promise<readonly Attempt[]> {
  return await trials.of(mode, async () => await tryInOrder(mode));
}

async function tryInOrder(mode: Mode): Promise<Attempt[]> {
  const launcher = await tryLauncher();
  const tried: Attempt[] = [];
  for (const attempt of MECHANISMS[mode]) {
    const result = await attempt(launcher);
    tried.push(result);
    if ("wrap" in result) break;
  }
  return tried;
}

/** Why mechanisms do not work, each reason once. Mechanisms that need the launcher fail with the same reason. */
export function reasonsOf(tried: readonly Attempt[]): string[] {
  return [...new Set(tried.flatMap((attempt) => ("why" in attempt ? [attempt.why] : [])))];
}

/**
 * Chooses the sandbox of a server, and checks the folders that the server is to reach.
 *
 * @throws FLEET_SANDBOX_UNUSABLE if `sandbox.mode` or `sandbox.network` names something that does not work on this
 * machine; if no sandbox works and the configuration allows tools; if only a weaker sandbox works than at
 * the last start
 * @throws FLEET_CONFIG_INVALID if a folder would expose the fleet's state or the secrets of its users, or let the
 * server change programs of the fleet or of the machine
 */
export async function chooseSandbox(
  grantee: Grantee & { id: string },
  { events, ...secrets }: Surroundings & { events: EventLog },
): Promise<Sandbox> {
  const settings = secrets.config.sandbox;
  const { mechanism, network } = await choose(secrets);
  const limits = chooseLimits(settings.limits, grantee.id);
  const report = reportOf(mechanism ?? NO_SANDBOX, { limits, network });
  const found = withNetwork(mechanism ?? NO_SANDBOX, network);
  const chosen = { ...report, remember: async () => await remember(secrets.stateRoot, found, events) };
  if (mechanism === null) return { ...chosen, wrap: (command) => limited(command, limits, null) };
  const grants = grantsOf(grantee, settings, secrets);
  const hidden = [...grants.hidden, ...hiddenWith(network)];
  return {
    ...chosen,
    wrap: (command, { home, copilotHome, temporary, sessionState, port, mark }) => {
      const own = [home, temporary, ...(sessionState === null ? [] : [sessionState])];
      const library = noDelayLibrary();
      const read = [
        ...grants.read,
        ...(copilotHome === home ? [] : [copilotHome]),
        ...(library === null ? [] : [library]),
      ];
      const paths = serverPaths({ ...grants, read, hidden, runtimePath: command[0], own, temporary });
      const inner = mechanism.wrap(command, paths, markOption(mark));
      if (network === undefined) return limited(inner, limits, mechanism);
      const cgroups = limits?.report.cgroups ?? [];
      const { stateRoot } = secrets;
      return inNamespace(limited(inner, limits, mechanism, []), { network, port, stateRoot, cgroups });
    },
  };
}

interface Surroundings extends Secrets {
  config: Config;
}

/**
 * The sandbox that each server gets if it starts now.
 *
 * @throws FLEET_SANDBOX_UNUSABLE if no server would start, see {@link chooseSandbox}
 */
export async function checkSandbox(surroundings: Surroundings): Promise<SandboxReport> {
  const { config } = surroundings;
  const { mechanism, network } = await choose(surroundings);
  return reportOf(mechanism ?? NO_SANDBOX, { limits: chooseLimits(config.sandbox.limits, "serve"), network });
}

/** The sandbox and the network that work on this machine. */
interface Possible {
  /** Null if no sandbox works, or if `sandbox.mode` is "none". */
  mechanism: Mechanism | null;
  /** Why stronger mechanisms do not work. */
  reasons: readonly string[];
  /** Undefined if the network is open. */
  network: RestrictedNetwork | undefined;
  /** Why the network is open although it should be restricted; null otherwise. */
  failure: string | null;
}

/** Finds the strongest sandbox and the restricted network that work on this machine with this configuration. */
export async function findPossible(config: PossibleConfig, env: NodeJS.ProcessEnv): Promise<Possible> {
  const { mode } = config.sandbox;
  const wanted = wantedNetwork(config, env);
  const attempts: Promise<readonly Attempt[]> = mode === "none" ? Promise.resolve([]) : tryMechanisms(mode);
  const [tried] = await Promise.all([attempts, tryNamespace(wanted)]);
  const mechanism = tried.find((attempt) => "wrap" in attempt) ?? null;
  const failure = await failureOfNetwork(wanted, mechanism);
  const network = failure === null ? (wanted ?? undefined) : undefined;
  return { mechanism, reasons: reasonsOf(tried), network, failure };
}

type PossibleConfig = Pick<Config, "sandbox" | "runtime">;

/** Chooses what is the same for all servers. */
async function choose({ config, stateRoot, env }: Surroundings): Promise<Pick<Possible, "mechanism" | "network">> {
  const settings = config.sandbox;
  const { mechanism, reasons, network, failure } = await findPossible(config, env);
  if (mechanism === null && settings.mode !== "none") refuseNone(config, reasons);
  if (failure !== null && settings.network !== "auto") {
    throw new FleetError("FLEET_SANDBOX_UNUSABLE", `sandbox.network is "${settings.network}", but ${failure}.`, {
      suggestions: ["copilotfleet doctor", 'Set sandbox.network to "open" to allow every address.'],
    });
  }
  const found = withNetwork(mechanism ?? NO_SANDBOX, network);
  refuseWeaker(stateRoot, found, { config, env, reasons: [...reasons, ...(failure === null ? [] : [failure])] });
  return { mechanism, network };
}

/** The protections that this machine gives, with the network of servers. */
export function withNetwork(
  { mode, not }: Pick<SandboxReport, "mode" | "not">,
  network: RestrictedNetwork | undefined,
): Pick<SandboxReport, "mode" | "not"> {
  return { mode, not: network === undefined ? not : not.filter((protection) => protection !== "network") };
}

function reportOf(
  { mode, not: lacking }: SandboxReport,
  { limits, network }: { limits: ChosenLimits | null; network: RestrictedNetwork | undefined },
): SandboxReport {
  const given = new Set<Protection>(network === undefined ? [] : ["network"]);
  // Do not report `resources` as protected without a filter of system calls, because an agent can then change how the
  // kernel schedules other processes.
  if (limits !== null && limitsResources(limits.report) && !lacking.includes("system-calls")) given.add("resources");
  const not = lacking.filter((protection) => !given.has(protection));
  return {
    ...{ mode, not },
    ...(network === undefined ? {} : { network }),
    ...(limits === null ? {} : { limits: limits.report }),
  };
}

/**
 * Makes the control groups of a server, and returns the command that starts it with its limits.
 *
 * @param cgroups the groups that the returned command joins; empty if a program around it joins them
 */
function limited(
  command: Command,
  limits: ChosenLimits | null,
  mechanism: Mechanism | null,
  cgroups = limits?.report.cgroups ?? [],
): Command {
  if (limits === null) return command;
  makeGroups(limits.groups);
  const joined = { ...limits, report: { ...limits.report, cgroups } };
  if (mechanism?.hasLauncher !== true) return underShell(joined, command);
  const [launcher, ...args] = command;
  return [launcher, ...launcherOptions(joined), ...args];
}

/**
 * The sandbox that a server would get if it started now with this configuration. Leaves out everything that does not
 * work on this machine.
 */
export async function sandboxNow(config: PossibleConfig, env: NodeJS.ProcessEnv): Promise<SandboxReport> {
  const { mechanism, network } = await findPossible(config, env);
  return reportOf(mechanism ?? NO_SANDBOX, { limits: chooseLimits(config.sandbox.limits, "doctor"), network });
}

/** @throws FLEET_SANDBOX_UNUSABLE if the configuration needs a sandbox on this machine, where none works */
function refuseNone(config: Config, reasons: readonly string[]): void {
  const { mode } = config.sandbox;
  if (mode !== "auto") {
    throw new FleetError("FLEET_SANDBOX_UNUSABLE", `sandbox.mode is "${mode}", but ${reasons.join(", and ")}.`, {
      suggestions: ["copilotfleet doctor", 'Set sandbox.mode to "auto" for the best sandbox that works here.'],
    });
  }
  const tools = toolSettings(config);
  if (tools.length === 0) return;
  const message = `${tools.join(" and ")}, but no sandbox works on this machine: ${reasons.join(", and ")}.`;
  throw new FleetError("FLEET_SANDBOX_UNUSABLE", message, {
    suggestions: [
      "copilotfleet doctor",
      'Set sandbox.mode to "none" to run the programs of agents and clients without a sandbox.',
      'Set session.approve and session.host to "none" to run no programs.',
    ],
  });
}

/** The settings that let agents or clients run programs whatever the sandbox, each as a text. */
export function toolSettings({ session: { approve, host } }: Pick<Config, "session">): string[] {
  return [
    ...(host === "owner" ? ['session.host is "owner"'] : []),
    ...(approve === "none" ? [] : [`session.approve is "${approve}"`]),
  ];
}

/** The server to which folders are granted. */
interface Grantee {
  /** Null for a shared server. */
  user: string | null;
  home: string;
  cwd: string;
  /** The Copilot program. */
  runtimePath: string;
}

interface Secrets {
  /** The fleet's state folder. */
  stateRoot: string;
  config: Pick<Config, "auth" | "provider" | "storage" | "storeOptions"> & {
    serve: Pick<Config["serve"], "tls">;
    host: Pick<Config["host"], "tls">;
  };
  env: NodeJS.ProcessEnv;
}

const READ_ONLY = ":ro";
/**
 * Each of these variables names a file with certificates that a server trusts. Servers inherit them from the process
 * that starts them.
 */
const CERTIFICATES = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"];

/**
 * The paths outside of its home that a server can reach: its working folder, `sandbox.binds`, and files with
 * certificates.
 *
 * @throws FLEET_CONFIG_INVALID if one of them would expose the fleet's state or the secrets of its users,
 * or if the server could change a program of the fleet or of the machine
 */
export function grantsOf(
  { user, home, cwd, runtimePath }: Grantee,
  { binds }: Pick<Config["sandbox"], "binds">,
  secrets: Secrets,
): Omit<PathsOptions, "runtimePath" | "own" | "temporary"> {
  const { env } = secrets;
  const hidden = hiddenFolders(secrets).map(realPath);
  const read: string[] = [];
  const write: string[] = [];
  for (const bind of binds) {
    if (user === null && bind.includes("{user}")) continue;
    const isReadOnly = bind.endsWith(READ_ONLY);
    const path = (isReadOnly ? bind.slice(0, -READ_ONLY.length) : bind).replaceAll("{user}", user ?? "");
    (isReadOnly ? read : write).push(path);
  }
  const isHome = resolve(cwd) === resolve(home);
  const folders = { hidden, own: [home, ...write].map(realPath) };
  const checked = (path: string) => checkedPath(path, "sandbox.binds", folders);
  const programs = programsOf(runtimePath);
  const writable = (path: string, setting: string) => {
    const real = checkedPath(path, setting, folders);
    if (!contains(folders.own[0] ?? "", real)) refusePrograms(real, programs, { path, setting });
    return real;
  };
  const certificates = CERTIFICATES.map((name) => ({ name, path: env[name] ?? "" })).filter(({ path }) => isFile(path));
  return {
    hidden,
    read: [...read.map(checked), ...certificates.map(({ name, path }) => checkedPath(path, name, folders))],
    write: [...write.map((path) => writable(path, "sandbox.binds")), ...(isHome ? [] : [writable(cwd, "--cwd")])],
    named: [...read, ...write, cwd, ...certificates.map(({ path }) => path)],
  };
}

function isFile(path: string): boolean {
  try {
    return isAbsolute(path) && statSync(path).isFile();
  } catch {
    return false; // the runtime itself reports a certificate file that it cannot read
  }
}

/**
 * The paths with secrets: the fleet's state and configuration, the shared storage, the folder with the users' token
 * files, the files with keys, and the files that contain the values of configuration keys (`COPILOTFLEET_STORE_FILE`
 * and so on).
 */
function hiddenFolders({ stateRoot, config, env }: Secrets): string[] {
  const { auth, provider, storage, storeOptions, serve, host } = config;
  const apiKey = provider === null || provider.type === "echo" ? null : provider.apiKey;
  const secrets = [auth.githubToken, auth.githubApp?.privateKey, apiKey, storeOptions.key, storeOptions.password].map(
    (source) => (source?.from === "file" ? source.path.replace(/[^/]*\{user\}.*$/s, "") : null),
  );
  const keys = [...secrets, serve.tls.key, host.tls.key];
  const valueFiles = keyVariables().map((variable) => env[`${variable}_FILE`]);
  const all = [stateRoot, dirname(userConfigFile(env)), storage.shared, ...keys, ...valueFiles];
  return all.flatMap((path) => (path == null || path === "" ? [] : [resolve(path)]));
}

/** Paths of folders, with all links resolved. */
interface Folders {
  hidden: readonly string[];
  /** The folders that the server can change. The first is its home. */
  own: readonly string[];
}

/**
 * The path with all links resolved.
 *
 * @throws FLEET_CONFIG_INVALID if the path would expose a hidden folder, or leads through a folder of the server to a
 * place outside
 */
function checkedPath(path: string, setting: string, { hidden, own }: Folders): string {
  const real = realPath(path);
  if (contains(own[0] ?? "", real)) return real;
  const exposed = hidden.find((secret) => contains(real, secret) || contains(secret, real));
  if (exposed !== undefined) {
    const problem = `give a server access to ${quote(exposed)}, which contains secrets of the fleet or of other users`;
    throw exposing(`${setting}: ${quote(path)} would ${problem}.`);
  }
  // The agent can change everything in these folders. So if the path leads through one of them to a place outside, the
  // agent may have made the link that leads out.
  const through = own.find((folder) => isThrough(path, folder) && !contains(folder, real));
  if (through === undefined) return real;
  throw new FleetError(
    "FLEET_CONFIG_INVALID",
    `${setting}: ${quote(path)} leads out of ${quote(through)} by a link that the server itself may have made. Allowed: a path without such a link.`,
    { suggestions: [`ls -ld ${shellQuote(path)}`] },
  );
}

function refusePrograms(real: string, { folders, paths }: Programs, named: { path: string; setting: string }): void {
  const exposed = folders.find((folder) => contains(folder, real)) ?? paths.find((program) => contains(real, program));
  if (exposed === undefined) return;
  const problem = `let a server change ${quote(exposed)}, which has programs or settings of the machine or of the fleet`;
  throw exposing(`${named.setting}: ${quote(named.path)} would ${problem}.`);
}

function exposing(problem: string): FleetError {
  return new FleetError("FLEET_CONFIG_INVALID", `${problem} Allowed: a folder that neither contains it nor is in it.`, {
    suggestions: ["Choose a folder that has only files for this user."],
  });
}

/** Whether a parent of the path is `folder` or below it, after all links in that parent are resolved. */
function isThrough(path: string, folder: string): boolean {
  const parent = dirname(path);
  return parent !== path && (contains(folder, realPath(parent)) || isThrough(parent, folder));
}
