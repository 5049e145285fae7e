import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ignoredVariables } from "./config/environment.js";
import { type LoadedConfig, loadConfig } from "./config/load.js";
import { isFleetError } from "./errors.js";
import { Fleet } from "./fleet.js";
import { missingBeacons } from "./hosts/beacon.js";
import { refuseRenamed } from "./hosts/host-note.js";
import { refuseOtherSettings } from "./hosts/serving-note.js";
import { FLEET_VARIABLE } from "./runtime/environment.js";
import { fileSystemOf, isLocal, problemsOf } from "./runtime/file-system.js";
import { findRuntime, packageVersion } from "./runtime/find.js";
import { launchesByVariable } from "./runtime/process-table.js";
import { usable } from "./runtime/shared-storage.js";
import { stopServer } from "./runtime/stop.js";
import { checkStateFolder } from "./store/file/state-folder.js";
import type { HostRecord } from "./store/store.js";

export interface Check {
  name: string;
  ok: boolean;
  /** What was seen. */
  detail: string;
  /** What mends it, as a command or a sentence; null where nothing is wrong. */
  fix: string | null;
  /** Whether `--fix` mended it just now. */
  fixed: boolean;
}

export interface DoctorResult {
  ok: boolean;
  checks: Check[];
  /** The exit code of the first problem that is left, by the public contract; 0 if there is none. */
  exit: number;
}

interface Finding {
  ok: boolean;
  detail: string;
  fix?: string;
  fixed?: boolean;
}

export interface DoctorOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  /** Mend what can be mended without losing anything. */
  fix: boolean;
}

const PROBLEM_EXIT = 3;

/**
 * Looks at everything the fleet stands on, one check after the other; a check that needs what an earlier one found
 * broken is left out. Without `fix` it changes nothing.
 */
export async function examine(options: DoctorOptions): Promise<DoctorResult> {
  const checks: Check[] = [];
  let exit = 0;
  const run = async (name: string, look: () => Finding | Promise<Finding>): Promise<boolean> => {
    let finding: Finding;
    let problemExit = PROBLEM_EXIT;
    try {
      finding = await look();
    } catch (error) {
      finding = { ok: false, detail: error instanceof Error ? error.message : String(error) };
      if (isFleetError(error)) {
        problemExit = error.exit;
        if (error.suggestions[0] !== undefined) finding.fix = error.suggestions[0];
      }
    }
    const { ok, detail, fix = null, fixed = false } = finding;
    checks.push({ name, ok, detail, fix: ok ? null : fix, fixed });
    if (!ok && exit === 0) exit = problemExit;
    return ok;
  };

  await run("node", () => ({
    ok: true,
    detail: `Node.js ${process.versions.node} on ${process.platform}-${process.arch}`,
  }));
  let loaded: LoadedConfig | undefined;
  await run("configuration", () => {
    loaded = loadConfig({ env: options.env, cwd: options.cwd });
    return { ok: true, detail: loaded.sources.length === 0 ? "defaults; no file" : loaded.sources.join(", ") };
  });
  await run("environment", () => unknownSettings(options.env));
  if (loaded !== undefined) {
    const known = loaded;
    await run("runtime", () => runtimeStarts(known, options.env));
    await run("model", () => modelIsConfigured(known));
    if (await run("state folder", () => stateFolder(known))) await recordedState(run, options, known);
  }
  return { ok: checks.every(({ ok }) => ok), checks, exit };
}

type Run = (name: string, look: () => Finding | Promise<Finding>) => Promise<boolean>;

async function recordedState(run: Run, options: DoctorOptions, { stateRoot, config }: LoadedConfig): Promise<void> {
  await using fleet = await Fleet.open({ env: options.env, cwd: options.cwd });
  const isReadable = await run("registry", async () => {
    const count = await fleet.recordedServers();
    const warnings = fleet.takeWarnings();
    if (warnings.length === 0) return { ok: true, detail: `${count} servers recorded` };
    // The next write mends what the warnings are about: nothing here is worth a write of its own.
    return { ok: true, detail: `${count} servers recorded; ${warnings.join(" ")}` };
  });
  if (!isReadable) return;
  await run("servers", async () => {
    const broken = await fleet.brokenServers();
    if (broken.length === 0) return { ok: true, detail: "every recorded server is what it is recorded as" };
    if (options.fix) await fleet.servers();
    const detail = `${broken.join(", ")}: recorded as running, and not running`;
    return { ok: options.fix, detail, fix: "copilotfleet ps", fixed: options.fix };
  });
  const { shared } = config.storage;
  if (shared !== null) await run("shared storage", async () => await sharedStorage(shared, await fleet.hosts()));
  await run("stray processes", async () => {
    // Processes first: a launch is recorded before its process starts, so none seen here is recorded only later.
    const launches = [...launchesByVariable(FLEET_VARIABLE, stateRoot)];
    const known = await fleet.launchIds();
    const strays = launches.filter(([launchId]) => !known.has(launchId));
    if (strays.length === 0) return { ok: true, detail: "none" };
    if (options.fix)
      for (const [launchId] of strays) await stopServer({ process: null, launchId, home: null }, { graceMs: 0 });
    const pids = strays.flatMap(([, processes]) => processes.map(({ pid }) => pid));
    const detail = `of this fleet, but in no record: pid ${pids.join(", ")}`;
    return { ok: options.fix, detail, fix: "copilotfleet doctor --fix", fixed: options.fix };
  });
}

/** That the folder is there, can be relied on, and is the one that the other hosts have. */
async function sharedStorage(shared: string, hosts: readonly HostRecord[]): Promise<Finding> {
  const fileSystem = await usable(shared, async () => fileSystemOf(shared));
  const at = `${shared} on ${fileSystem.type} (${fileSystem.source} at ${fileSystem.mountPoint})`;
  const problems = await problemsOf(shared);
  if (problems.length > 0) {
    const fix = "Put the shared storage on another file system, such as NFS 4 or CephFS.";
    return { ok: false, detail: `${at}: this file system ${problems.join(", and it ")}`, fix };
  }
  const there = hosts.filter(({ gone }) => !gone);
  const missing = await missingBeacons(shared, there);
  if (missing.length > 0) {
    const detail = `${at} is not the folder that ${missing.join(", ")} shares`;
    return { ok: false, detail, fix: `findmnt --target ${shared} (on each host)` };
  }
  const seen = there.filter(({ beacon }) => beacon != null).map(({ name }) => name);
  const proof =
    seen.length === 0 ? "no host serves, so that others share it is not proved" : `shared with ${seen.join(", ")}`;
  const doubt = isLocal(fileSystem) ? ". That is a file system of one machine" : "";
  return { ok: true, detail: `${at}: writable, renames and links hold; ${proof}${doubt}` };
}

function unknownSettings(env: NodeJS.ProcessEnv): Finding {
  return { ok: true, detail: ignoredVariables(env) ?? "no unknown COPILOTFLEET_ variables" };
}

/** Finding the file proves little: it is started once, in a folder that goes away, and asked for its version. */
async function runtimeStarts({ config }: LoadedConfig, env: NodeJS.ProcessEnv): Promise<Finding> {
  const runtime = findRuntime(config.runtime.path, env);
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-doctor-"));
  try {
    await using trial = await Fleet.open({
      cwd: folder,
      env: { ...env, COPILOTFLEET_HOME: join(folder, "state") },
      config: {
        runtime: { path: runtime.path },
        // The trial is nobody else's business.
        store: "file",
        storage: { shared: null },
        auth: { githubTokenEnv: null, githubTokenFile: null, githubTokenCommand: null },
      },
    });
    const { server } = await trial.spawn("doctor");
    await trial.stop([server.id], { force: true });
    const version = packageVersion(runtime.path);
    const from = version === null ? runtime.origin : `${runtime.origin}, package ${version}`;
    return { ok: true, detail: `${runtime.path} (${from}) starts and answers as version ${server.version}` };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function modelIsConfigured({ config }: LoadedConfig): Finding {
  if (config.provider !== null) return { ok: true, detail: `provider of type ${config.provider.type}` };
  const sources = Object.entries(config.auth).filter(([, value]) => value !== null);
  if (sources.length > 0) return { ok: true, detail: `GitHub token by auth.${sources[0]?.[0]}` };
  return { ok: true, detail: "none configured: give each server a token (spawn --token-env), or set auth or provider" };
}

function stateFolder({ config, stateRoot }: LoadedConfig): Finding {
  checkStateFolder(stateRoot);
  refuseOtherSettings(config, stateRoot);
  refuseRenamed(config, stateRoot);
  return { ok: true, detail: stateRoot };
}
