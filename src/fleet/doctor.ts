import { mkdtemp, rm, statfs } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { ignoredVariables, unknownVariables } from "../config/load/environment.js";
import { type LoadedConfig, loadConfig } from "../config/load/load.js";
import type { RemoteProvider } from "../config/schema.js";
import { isFleetError, quote, systemCode } from "../errors.js";
import { missingBeacons } from "../hosts/beacon.js";
import { refuseRenamed } from "../hosts/host-note.js";
import { refuseOtherSettings } from "../hosts/serving-note.js";
import type { HostRecord } from "../model/host.js";
import { resolveGitHubToken, tokenSourceFromConfig } from "../models/github-token.js";
import { resolveProvider } from "../models/provider.js";
import { isBindable, type PortRange } from "../pool/start/ports.js";
import { ADDRESS } from "../pool/start/start.js";
import { fileSystemOf, isLocal, problemsOf } from "../runtime/files/file-system.js";
import { usable } from "../runtime/files/shared-storage.js";
import { findRuntime, packageVersion } from "../runtime/launch/find.js";
import { connectProblem } from "../runtime/launch/reach.js";
import { processesByLaunch } from "../runtime/process/launches.js";
import { stopServer } from "../runtime/process/stop.js";
import { DAMAGE_ADVICE } from "../store/file/commit/damage.js";
import { checkStateFolder } from "../store/file/state-folder.js";
import { Fleet } from "./fleet.js";

/** `warning`: it works, but it will probably cause a surprise. `skipped`: it depends on an earlier check that failed. */
export type CheckLevel = "ok" | "warning" | "failed" | "skipped";

export interface Check {
  name: string;
  /** False for `failed` and `skipped`. */
  ok: boolean;
  level: CheckLevel;
  /** The result of the check, as a sentence for the user. */
  detail: string;
  /** The repair, as a command or a sentence. Null if nothing needs repair, or if there is no general advice. */
  fix: string | null;
  /** Whether `--fix` has just repaired it. */
  fixed: boolean;
}

export interface DoctorResult {
  ok: boolean;
  checks: Check[];
  /** The exit code of the first remaining problem in the public contract; 0 if there is none. */
  exit: number;
}

/** The result of one check. With a warning, the whole result is still `ok`, but the fix is shown. */
interface Finding {
  level: Exclude<CheckLevel, "skipped">;
  detail: string;
  fix?: string;
  fixed?: boolean;
}

export interface DoctorOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  /** The configuration file that the user named with `--config`. */
  configFile?: string;
  /** Repair what can be repaired without losing anything. */
  fix: boolean;
}

const PROBLEM_EXIT = 3;
/** The checks that read the recorded state, in order. */
const OF_THE_STATE = ["session records", "servers", "pool", "serve", "ports", "stray processes"];
const CONNECT_MS = 2_000;
const LITTLE_SPACE_BYTES = 1_000_000_000;
/** The check warns if fewer ports than this are free. For a small range, the limit is a tenth of the range. */
const FEW_PORTS = 10;

/** Collects the checks. If a check fails, the checks that depend on it are listed as skipped. */
class Checks {
  readonly all: Check[] = [];
  /** The exit code of the first failed check; 0 if none has failed. */
  exit = 0;

  /** Runs one check. Resolves with true if it passed, possibly with a warning. */
  async run(name: string, look: () => Finding | Promise<Finding>): Promise<boolean> {
    let finding: Finding;
    let exit = PROBLEM_EXIT;
    try {
      finding = await look();
    } catch (error) {
      finding = { level: "failed", detail: error instanceof Error ? error.message : String(error) };
      if (isFleetError(error)) {
        exit = error.exit;
        const fix = adviceOf(error.suggestions);
        if (fix !== undefined) finding.fix = fix;
      }
    }
    const { level, detail, fix = null, fixed = false } = finding;
    const ok = level !== "failed";
    this.all.push({ name, ok, level, detail, fix: level === "ok" ? null : fix, fixed });
    if (!ok && this.exit === 0) this.exit = exit;
    return ok;
  }

  skip(names: readonly string[], because: string): void {
    const detail = `not checked, because the check "${because}" failed`;
    for (const name of names) this.all.push({ name, ok: false, level: "skipped", detail, fix: null, fixed: false });
  }
}

/** Returns the first suggestion that does not send the user back to this command. */
function adviceOf(suggestions: readonly string[]): string | undefined {
  return suggestions.find((suggestion) => !suggestion.includes("copilotfleet doctor"));
}

/**
 * Checks everything that the fleet depends on, one check after the other. Lists checks as skipped if they depend on a
 * failed check. Changes nothing without `fix`.
 */
export async function examine(options: DoctorOptions): Promise<DoctorResult> {
  const checks = new Checks();
  await checks.run("node", () => ({
    level: "ok",
    detail: `Node.js ${process.versions.node} on ${process.platform}-${process.arch}`,
  }));
  let loaded: LoadedConfig | undefined;
  await checks.run("configuration", () => {
    loaded = loadConfig(options);
    return { level: "ok", detail: loaded.sources.length === 0 ? "defaults; no file" : loaded.sources.join(", ") };
  });
  await checks.run("environment", () => unknownSettings(options.env));
  if (loaded === undefined) {
    checks.skip(
      ["isolation", "runtime", "model", "state folder", "disk space", "registry", ...OF_THE_STATE],
      "configuration",
    );
  } else {
    const known = loaded;
    await checks.run("isolation", () => isolationOf(known));
    await checks.run("runtime", () => runtimeStarts(known, options.env));
    await checks.run("model", () => modelAnswers(known, options.env));
    const isUsable = await checks.run("state folder", () => stateFolder(known));
    await checks.run("disk space", () => diskSpace(known));
    if (isUsable) await recordedState(checks, options, known);
    else checks.skip(["registry", ...stateChecks(known)], "state folder");
  }
  return { ok: checks.all.every(({ ok }) => ok), checks: checks.all, exit: checks.exit };
}

/** Reports how users are separated. Warns if programs of one user can run with access to the state of others. */
function isolationOf({ config: { isolation, session } }: LoadedConfig): Finding {
  if (isolation === "shared") {
    return { level: "ok", detail: "shared: clients of one server are separated by the front door's rules" };
  }
  const detail =
    "per-user: each server has its own home, history and token, but all servers run as one operating-system user. " +
    'An agent with a shell, or a client with session.host "owner", can read everything that the fleet\'s account can read, ' +
    "including other users' conversations and keys";
  const open = [
    ...(session.host === "owner" ? ['session.host is "owner"'] : []),
    ...(session.approve === "none" ? [] : [`session.approve is "${session.approve}"`]),
  ];
  if (open.length === 0) return { level: "ok", detail };
  const fix = 'If you do not trust all users and their agents: "session": {"host": "none", "approve": "none"}';
  return { level: "warning", detail: `${detail}. Here, ${open.join(" and ")}`, fix };
}

/** The checks of the recorded state, including that of the shared storage if it is configured. */
function stateChecks({ config }: LoadedConfig): string[] {
  return config.storage.shared === null ? OF_THE_STATE : [...OF_THE_STATE, "shared storage"];
}

async function recordedState(checks: Checks, options: DoctorOptions, loaded: LoadedConfig): Promise<void> {
  const { stateRoot, config } = loaded;
  await using fleet = await Fleet.open(options);
  const isReadable = await checks.run("registry", async () => {
    const count = await fleet.records.servers();
    const warnings = fleet.takeWarnings();
    const fixed = options.fix && warnings.some(isDamage);
    if (fixed) await fleet.records.repairRegistry();
    return recorded(`${count} servers recorded`, warnings, fixed);
  });
  if (!isReadable) return checks.skip(stateChecks(loaded), "registry");
  await checks.run("session records", async () => {
    const count = await fleet.records.sessions();
    const warnings = fleet.takeWarnings();
    const fixed = options.fix && warnings.some(isDamage);
    if (fixed) await fleet.records.repairSessions();
    return recorded(`${count} sessions recorded`, warnings, fixed);
  });
  await checks.run("servers", async () => {
    const broken = await fleet.records.brokenServers();
    if (broken.length === 0) return { level: "ok", detail: "every server is in its recorded state" };
    if (options.fix) await fleet.servers.list();
    const detail = `${broken.join(", ")}: recorded as running, but not running`;
    return { level: options.fix ? "ok" : "failed", detail, fix: "copilotfleet ps", fixed: options.fix };
  });
  await checks.run("pool", async () => await poolAdmits(fleet));
  await checks.run("serve", async () => await supervision(fleet));
  await checks.run("ports", async () => await freePorts(config.ports, await fleet.records.heldPorts()));
  await checks.run("stray processes", async () => {
    // List the processes before reading the records. A launch is recorded before its process starts, so the record of
    // every listed process already exists.
    const launches = [...processesByLaunch(stateRoot)];
    const known = await fleet.records.launchIds();
    const strays = launches.filter(([launchId]) => !known.has(launchId));
    if (strays.length === 0) return { level: "ok", detail: "none" };
    if (options.fix)
      for (const [launchId] of strays) await stopServer({ process: null, launchId, home: null }, { graceMs: 0 });
    const pids = strays.flatMap(([, processes]) => processes.map(({ identity }) => identity.pid));
    const detail = `processes of this fleet that are not in any record: pid ${pids.join(", ")}`;
    const fix = "Add --fix to end these processes.";
    return { level: options.fix ? "ok" : "failed", detail, fix, fixed: options.fix };
  });
  const { shared } = config.storage;
  if (shared !== null)
    await checks.run("shared storage", async () => await sharedStorage(shared, await fleet.hosts.list()));
}

/** Damage is a warning, because the records can still be used. */
function recorded(count: string, warnings: readonly string[], fixed: boolean): Finding {
  if (warnings.length === 0) return { level: "ok", detail: count };
  const texts = warnings.map((warning) => warning.replace(DAMAGE_ADVICE, "").trim());
  const advice = "Check the disk. Add --fix to write the records again; the damaged files are kept as corrupt-*.";
  const fix = warnings.some(isDamage) ? { fix: advice } : {};
  return { level: fixed ? "ok" : "warning", detail: `${count}; ${texts.join(" ")}`, ...fix, fixed };
}

function isDamage(warning: string): boolean {
  return warning.endsWith(DAMAGE_ADVICE);
}

async function poolAdmits(fleet: Fleet): Promise<Finding> {
  const { state, reason, drainedAt } = await fleet.pool.state();
  if (state === "open") return { level: "ok", detail: "open" };
  const fix = drainedAt === null ? {} : { fix: "copilotfleet drain --undo" };
  return { level: "warning", detail: `${reason}: it takes no new servers or turns`, ...fix };
}

async function supervision(fleet: Fleet): Promise<Finding> {
  const pid = await fleet.pool.supervisorPid();
  if (pid !== null) return { level: "ok", detail: `running as process ${pid}` };
  const detail = "not running: nothing restarts crashed servers, deletes expired sessions or opens the front door";
  return { level: "warning", detail, fix: "copilotfleet serve" };
}

/** Tries ports only until enough free ones are found, because a range may have tens of thousands. */
async function freePorts({ from, to }: PortRange, held: ReadonlySet<number>): Promise<Finding> {
  const size = to - from + 1;
  const enough = Math.min(FEW_PORTS, Math.ceil(size / 10));
  let free = 0;
  let foreign = 0;
  for (let port = from; port <= to && free < enough; port++) {
    if (held.has(port)) continue;
    if (await isBindable(ADDRESS, port)) free++;
    else foreign++;
  }
  const own = [...held].filter((port) => port >= from && port <= to).length;
  if (free >= enough)
    return { level: "ok", detail: `${own} of the ${size} ports from ${from} to ${to} are used by servers` };
  const count = free === 0 ? "none" : `only ${free}`;
  const used = `${own} are used by servers, ${foreign} by other programs`;
  return {
    level: "warning",
    detail: `${count} of the ${size} ports from ${from} to ${to} ${free === 1 ? "is" : "are"} free; ${used}`,
    fix: "Widen ports.from and ports.to in the configuration.",
  };
}

async function diskSpace({ config, stateRoot }: LoadedConfig): Promise<Finding> {
  const { shared } = config.storage;
  const spaces = await Promise.all([stateRoot, ...(shared === null ? [] : [shared])].map(freeSpace));
  const little = spaces.filter(({ bytes }) => bytes < LITTLE_SPACE_BYTES);
  const detail = (little.length === 0 ? spaces : little)
    .map(({ path, bytes }) => `${megabytes(bytes)} free at ${path}`)
    .join(", ");
  if (little.length === 0) return { level: "ok", detail };
  const fix = "copilotfleet gc --dry-run";
  return { level: "warning", detail: `only ${detail}; on a full disk, the fleet refuses new sessions and turns`, fix };
}

/**
 * Returns the bytes that this user can still write on the file system of the path. Uses the nearest existing folder
 * above if the path does not exist.
 */
async function freeSpace(path: string): Promise<{ path: string; bytes: number }> {
  try {
    const { bavail, bsize } = await statfs(path);
    return { path, bytes: bavail * bsize };
  } catch (error) {
    if (systemCode(error) !== "ENOENT" || dirname(path) === path) throw error;
    return { path, bytes: (await freeSpace(dirname(path))).bytes };
  }
}

function megabytes(bytes: number): string {
  return bytes < LITTLE_SPACE_BYTES ? `${Math.floor(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** Checks that the folder exists, that its file system is reliable, and that the other hosts use the same folder. */
async function sharedStorage(shared: string, hosts: readonly HostRecord[]): Promise<Finding> {
  const fileSystem = await usable(shared, async () => fileSystemOf(shared));
  const at = `${shared} on ${fileSystem.type} (${fileSystem.source} at ${fileSystem.mountPoint})`;
  const problems = await problemsOf(shared);
  if (problems.length > 0) {
    const fix = "Put the shared storage on another file system, such as NFS 4 or CephFS.";
    return { level: "failed", detail: `${at}: this file system ${problems.join(", and it ")}`, fix };
  }
  const there = hosts.filter(({ gone }) => !gone);
  const missing = await missingBeacons(shared, there);
  if (missing.length > 0) {
    const detail = `${at} is not the folder that ${missing.join(", ")} shares`;
    return { level: "failed", detail, fix: `findmnt --target ${shared} (on each host)` };
  }
  const seen = there.filter(({ beacon }) => beacon != null).map(({ name }) => name);
  const proof =
    seen.length === 0
      ? "no host serves, so nothing proves that other hosts share it"
      : `shared with ${seen.join(", ")}`;
  const doubt = isLocal(fileSystem) ? ". This file system belongs to one machine" : "";
  return { level: "ok", detail: `${at}: writable, and renames and links work; ${proof}${doubt}` };
}

function unknownSettings(env: NodeJS.ProcessEnv): Finding {
  const ignored = ignoredVariables(env);
  if (ignored === null) return { level: "ok", detail: "no unknown COPILOTFLEET_ variables" };
  const names = unknownVariables(env).map(({ name }) => name);
  return { level: "warning", detail: ignored, fix: `unset ${names.join(" ")}` };
}

/** Starts the runtime once in a temporary folder and asks for its version, because finding the file does not prove much. */
async function runtimeStarts({ config }: LoadedConfig, env: NodeJS.ProcessEnv): Promise<Finding> {
  const runtime = findRuntime(config.runtime.path, env);
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-doctor-"));
  try {
    await using trial = await Fleet.open({
      cwd: folder,
      env: { ...env, COPILOTFLEET_HOME: join(folder, "state") },
      config: {
        runtime: { path: runtime.path },
        // The trial must not touch the fleet's store, storage or tokens.
        store: "file",
        storage: { shared: null },
        auth: { githubTokenEnv: null, githubTokenFile: null, githubTokenCommand: null },
      },
    });
    const { server } = await trial.servers.spawn("doctor");
    await trial.servers.stop([server.id], { force: true });
    const version = packageVersion(runtime.path);
    const from = version === null ? runtime.origin : `${runtime.origin}, package ${version}`;
    return { level: "ok", detail: `${runtime.path} (${from}) starts and answers as version ${server.version}` };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * Checks that prompts can reach a model. At most connects to the model's address. Sends no key and runs no token
 * command.
 */
async function modelAnswers({ config }: LoadedConfig, env: NodeJS.ProcessEnv): Promise<Finding> {
  const { provider, auth } = config;
  try {
    if (provider?.type === "echo") return { level: "ok", detail: "the built-in echo model" };
    if (provider !== null) {
      resolveProvider(provider, env);
      return await providerAnswers(provider, config.runtime.env, env);
    }
    const [setting] = Object.entries(auth).find(([, value]) => value !== null) ?? [];
    if (setting === undefined) return noModel();
    const source = auth.githubTokenEnv?.includes("{user}") === false ? tokenSourceFromConfig(auth, null) : null;
    if (source !== null) await resolveGitHubToken(source, { user: null, env });
    return { level: "ok", detail: `GitHub token from auth.${setting}` };
  } catch (error) {
    if (!isFleetError(error)) throw error;
    const fix = adviceOf(error.suggestions);
    return { level: "warning", detail: error.message, ...(fix === undefined ? {} : { fix }) };
  }
}

function noModel(): Finding {
  return {
    level: "warning",
    detail:
      "none: neither provider nor auth is set, so only servers that were started with a GitHub token answer prompts",
    fix: "Set provider or auth in .copilotfleet.json, or give a server a token with spawn --token-env VAR.",
  };
}

async function providerAnswers(
  { type, baseUrl }: RemoteProvider,
  passedOn: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<Finding> {
  const url = new URL(baseUrl);
  const isSecure = url.protocol === "https:";
  const proxy = passedOn.find((name) => /^https_proxy$/i.test(name) && env[name] !== undefined && env[name] !== "");
  const service = `provider of type ${type} at ${url.host}`;
  if (isSecure && proxy !== undefined) {
    return { level: "ok", detail: `${service}; not tried, because servers reach it through ${proxy}` };
  }
  const port = url.port === "" ? (isSecure ? 443 : 80) : Number(url.port);
  const problem = await connectProblem({ host: url.hostname.replace(/^\[|\]$/g, ""), port }, CONNECT_MS);
  if (problem === null) return { level: "ok", detail: `${service} accepts connections` };
  const fix = `Start the service, or correct provider.baseUrl (${quote(baseUrl)}).`;
  return { level: "warning", detail: `${service} cannot be reached: ${problem}`, fix };
}

function stateFolder({ config, stateRoot }: LoadedConfig): Finding {
  checkStateFolder(stateRoot);
  refuseOtherSettings(config, stateRoot);
  refuseRenamed(config, stateRoot);
  return { level: "ok", detail: stateRoot };
}
