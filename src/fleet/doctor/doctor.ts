import { ignoredVariables, unknownVariables } from "../../config/load/environment.js";
import { type LoadedConfig, loadConfig } from "../../config/load/load.js";
import { openParts } from "../parts.js";
import { type Check, Checks, type Finding, ok, warning } from "./checks.js";
import { INSTALLATION, RUNTIME } from "./installation.js";
import { HOSTS, OPERATION, STORE } from "./operation.js";
import { CERTIFICATES, hasSignOn, SETTINGS, SIGN_ON } from "./settings.js";
import { DISK_SPACE, PERMISSIONS, RECORDS, REGISTRY, STATE_FOLDER, sharedStorage } from "./storage.js";

export interface DoctorResult {
  /** Whether no check has failed. Warnings, and checks that `quick` skips, do not count. */
  ok: boolean;
  checks: Check[];
  /** The exit code for the first check that still fails, as the public contract defines it; 0 if none fails. */
  exit: number;
}

export interface DoctorOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  /** The configuration file that the user named with `--config`. */
  configFile?: string;
  /** Repair what can be repaired without losing anything. */
  fix: boolean;
  acceptWeakerSandbox: boolean;
  /** Skip checks that start a server or use the network, except for the store. */
  quick: boolean;
  /** When it aborts, the current check ends, and the call rejects with the signal's reason. */
  signal: AbortSignal;
  /** Called with the name of each check when it begins. */
  onCheck?: (name: string) => void;
}

/** Checks everything that the fleet depends on, one check after the other. Changes nothing without `fix`. */
export async function examine(options: DoctorOptions): Promise<DoctorResult> {
  const { env, fix, quick, acceptWeakerSandbox, signal } = options;
  const checks = new Checks(options);
  let loaded: LoadedConfig | undefined;
  const configuration = () => {
    loaded = loadConfig(options);
    return ok(loaded.sources.length === 0 ? "defaults; no file" : loaded.sources.join(", "));
  };
  await checks.run(
    [
      ...INSTALLATION,
      { name: "configuration", look: configuration },
      { name: "environment", look: () => unknownSettings(env) },
    ],
    undefined,
  );
  const { serve, host } = loaded?.config ?? {};
  const hasTls = [serve?.tls.cert, host?.tls.cert, host?.tls.ca].some((path) => typeof path === "string");
  const local = [...SETTINGS, ...(hasTls ? [CERTIFICATES] : []), RUNTIME, STATE_FOLDER, PERMISSIONS, DISK_SPACE];
  const records = [...RECORDS, ...OPERATION];
  if (loaded === undefined) {
    checks.skip([...local, STORE, REGISTRY, ...records], "configuration");
  } else {
    if (hasSignOn(loaded.config)) local.push(SIGN_ON);
    await checks.run(local, { ...loaded, env, fix, quick, acceptWeakerSandbox, signal });
    const { storage, store } = loaded.config;
    if (store.kind !== "file") records.push(HOSTS);
    if (storage.shared !== null) records.push(sharedStorage(storage.shared));
    if (checks.passed(STATE_FOLDER.name)) {
      const parts = openParts(options);
      const context = { parts, fix, quick };
      try {
        await checks.run([STORE], context);
        // Files that cannot be written, for example on a full disk, may still be readable.
        if (checks.passed(STORE.name) || store.kind === "file") await checks.run([REGISTRY], context);
        else checks.skip([REGISTRY], STORE.name);
        if (checks.passed(REGISTRY.name)) await checks.run(records, context);
        else checks.skip(records, checks.passed(STORE.name) ? REGISTRY.name : STORE.name);
      } finally {
        await parts.close();
      }
    } else checks.skip([STORE, REGISTRY, ...records], STATE_FOLDER.name);
  }
  return { ok: checks.exit === 0, checks: checks.all, exit: checks.exit };
}

function unknownSettings(env: NodeJS.ProcessEnv): Finding {
  const ignored = ignoredVariables(env);
  if (ignored === null) return ok("no unknown COPILOTFLEET_ variables");
  const names = unknownVariables(env).map(({ name }) => name);
  return warning(ignored, `unset ${names.join(" ")}`);
}
