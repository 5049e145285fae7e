import type { Config } from "../config/schema.js";
import { FleetError } from "../errors.js";
import {
  limitsResources,
  NO_SANDBOX,
  type Protection,
  type RestrictedNetwork,
  type SandboxReport,
} from "../model/sandbox.js";
import { tryBwrapAlone, tryBwrapAround } from "./bwrap.js";
import { type Grantee, grantsOf, type Secrets } from "./grants.js";
import { tryLauncher, trySetpriv } from "./landlock.js";
import { makeGroups } from "./limits/cgroups.js";
import { type ChosenLimits, chooseLimits, launcherOptions, underShell } from "./limits/limits.js";
import { hiddenWith, inNamespace } from "./network/namespace.js";
import { failureOfNetwork, tryNamespace, wantedNetwork } from "./network/trial.js";
import { type Paths, serverPaths } from "./paths.js";
import { assertToolSandbox } from "./tool-sandbox.js";
import { Trials } from "./trials.js";

/** The sandbox of one server. */
export interface Sandbox extends SandboxReport {
  /**
   * The command that starts a server inside the sandbox.
   *
   * @param command the program, as an absolute path, and its arguments
   */
  wrap(command: Command, start: Start): Command;
}

export interface OwnFolders {
  home: string;
  temporary: string;
  /** The folder of the server's sessions, if it is outside of the server's home; otherwise null. */
  sessionState: string | null;
}

/** One start of the server. */
export interface Start extends OwnFolders {
  port: number;
}

export type Command = readonly [program: string, ...args: string[]];

/** A way to restrict programs on this machine. */
export interface Mechanism extends SandboxReport {
  wrap(command: Command, paths: Paths): Command;
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
  auto: [tryBwrapAround, (launcher) => launcher, tryBwrapAlone, trySetpriv],
  landlock: [(launcher) => launcher, trySetpriv],
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
 * @throws FLEET_SANDBOX_UNUSABLE if `sandbox.mode`, `sandbox.tools` or `sandbox.network` names something that does not
 * work on this machine
 * @throws FLEET_SANDBOX_UNSAFE if a folder would expose the fleet's state or the secrets of its users, or let the
 * server change programs of the fleet or of the machine
 */
export async function chooseSandbox(
  settings: Config["sandbox"],
  grantee: Grantee & { id: string },
  secrets: Secrets & { config: Pick<Config, "modelGateway" | "runtime"> },
): Promise<Sandbox> {
  const wanted = wantedNetwork({ ...secrets.config, sandbox: settings }, secrets.env);
  const [mechanism] = await Promise.all([chooseMechanism(settings), tryNamespace(wanted)]);
  const network = await chooseNetwork(settings, wanted, mechanism);
  const limits = chooseLimits(settings.limits, grantee.id);
  const report = reportOf(mechanism ?? NO_SANDBOX, { limits, network }, secrets.config);
  if (mechanism === null) await assertToolSandbox(settings, secrets.env);
  if (mechanism === null) return { ...report, wrap: (command) => limited(command, limits, null) };
  const grants = grantsOf(grantee, settings, secrets);
  const hidden = [...grants.hidden, ...hiddenWith(network)];
  return {
    ...report,
    wrap: (command, { home, temporary, sessionState, port }) => {
      const own = [home, temporary, ...(sessionState === null ? [] : [sessionState])];
      const paths = serverPaths({ ...grants, hidden, runtimePath: command[0], own, temporary });
      const inner = mechanism.wrap(command, paths);
      if (network === undefined) return limited(inner, limits, mechanism);
      const cgroups = limits?.report.cgroups ?? [];
      const { stateRoot } = secrets;
      return inNamespace(limited(inner, limits, mechanism, []), { network, port, stateRoot, cgroups });
    },
  };
}

function reportOf(
  { mode, not: lacking }: SandboxReport,
  { limits, network }: { limits: ChosenLimits | null; network: RestrictedNetwork | undefined },
  config: Pick<Config, "modelGateway">,
): SandboxReport {
  const given = new Set<Protection>(network === undefined ? [] : ["network"]);
  // Do not report `resources` as protected without a filter of system calls, because an agent can then change how the
  // kernel schedules other processes.
  if (limits !== null && limitsResources(limits.report) && !lacking.includes("system-calls")) given.add("resources");
  const not = withKey(lacking, config).filter((protection) => !given.has(protection));
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
export async function sandboxNow(
  config: Pick<Config, "sandbox" | "modelGateway" | "runtime">,
  env: NodeJS.ProcessEnv,
): Promise<SandboxReport> {
  const { mode, limits } = config.sandbox;
  const tried = mode === "none" ? [] : await tryMechanisms(mode);
  const found = tried.find((attempt) => "wrap" in attempt);
  const wanted = wantedNetwork(config, env);
  const isRestricted = (await failureOfNetwork(wanted, found ?? null)) === null;
  const network = isRestricted ? (wanted ?? undefined) : undefined;
  return reportOf(found ?? NO_SANDBOX, { limits: chooseLimits(limits, "doctor"), network }, config);
}

/**
 * The restricted network of a server; undefined if it is open.
 *
 * @throws FLEET_SANDBOX_UNUSABLE if the configuration names a restricted network, but this machine cannot make it
 */
async function chooseNetwork(
  { network }: Pick<Config["sandbox"], "network">,
  wanted: RestrictedNetwork | null,
  mechanism: Mechanism | null,
): Promise<RestrictedNetwork | undefined> {
  const failure = await failureOfNetwork(wanted, mechanism);
  if (failure === null) return wanted ?? undefined;
  if (network === "auto") return undefined;
  throw new FleetError("FLEET_SANDBOX_UNUSABLE", `sandbox.network is "${network}", but ${failure}.`, {
    suggestions: ["copilotfleet doctor", 'Set sandbox.network to "open" to allow every address.'],
  });
}

/**
 * Adds `provider-key` to the missing protections if there is no model gateway, because the key is then in the server's
 * memory.
 */
function withKey(not: readonly Protection[], { modelGateway }: Pick<Config, "modelGateway">): readonly Protection[] {
  return modelGateway === "on" || not.includes("provider-key") ? not : [...not, "provider-key"];
}

/** The mechanism that restricts servers; null if nothing does. */
async function chooseMechanism({ mode }: Pick<Config["sandbox"], "mode">): Promise<Mechanism | null> {
  if (mode === "none") return null;
  const tried = await tryMechanisms(mode);
  const found = tried.find((attempt) => "wrap" in attempt);
  if (found !== undefined) return found;
  if (mode === "auto") return null;
  const reasons = reasonsOf(tried);
  throw new FleetError("FLEET_SANDBOX_UNUSABLE", `sandbox.mode is "${mode}", but ${reasons.join(", and ")}.`, {
    suggestions: ["copilotfleet doctor", 'Set sandbox.mode to "auto" for the best sandbox that works here.'],
  });
}
