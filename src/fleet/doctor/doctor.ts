import { ignoredVariables, unknownVariables } from "../../config/load/environment.js";
import { type LoadedConfig, loadConfig } from "../../config/load/load.js";
import { Fleet } from "../fleet.js";
import { type Check, Checks, type Finding, ok, warning } from "./checks.js";
import { RECORDS, REGISTRY } from "./records.js";
import { SETTINGS } from "./settings.js";
import { DISK_SPACE, STATE_FOLDER, sharedStorage } from "./storage.js";

export interface DoctorResult {
  ok: boolean;
  checks: Check[];
  /** The exit code of the first remaining problem in the public contract; 0 if there is none. */
  exit: number;
}

export interface DoctorOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  /** The configuration file that the user named with `--config`. */
  configFile?: string;
  /** Repair what can be repaired without losing anything. */
  fix: boolean;
  /** Called with the name of each check when it begins. */
  onCheck?: (name: string) => void;
}

/** Checks everything that the fleet depends on, one check after the other. Changes nothing without `fix`. */
export async function examine(options: DoctorOptions): Promise<DoctorResult> {
  const checks = new Checks(options.onCheck);
  let loaded: LoadedConfig | undefined;
  const configuration = () => {
    loaded = loadConfig(options);
    return ok(loaded.sources.length === 0 ? "defaults; no file" : loaded.sources.join(", "));
  };
  await checks.run(
    [
      { name: "node", look: () => ok(`Node.js ${process.versions.node} on ${process.platform}-${process.arch}`) },
      { name: "configuration", look: configuration },
      { name: "environment", look: () => unknownSettings(options.env) },
    ],
    undefined,
  );
  if (loaded === undefined) {
    checks.skip([...SETTINGS, STATE_FOLDER, DISK_SPACE, REGISTRY, ...RECORDS], "configuration");
  } else {
    await checks.run([...SETTINGS, STATE_FOLDER, DISK_SPACE], { ...loaded, env: options.env });
    const { shared } = loaded.config.storage;
    const records = shared === null ? RECORDS : [...RECORDS, sharedStorage(shared)];
    if (checks.passed(STATE_FOLDER.name)) {
      await using fleet = await Fleet.open(options);
      const context = { fleet, fix: options.fix };
      await checks.run([REGISTRY], context);
      if (checks.passed(REGISTRY.name)) await checks.run(records, context);
      else checks.skip(records, REGISTRY.name);
    } else checks.skip([REGISTRY, ...records], STATE_FOLDER.name);
  }
  return { ok: checks.all.every((check) => check.ok), checks: checks.all, exit: checks.exit };
}

function unknownSettings(env: NodeJS.ProcessEnv): Finding {
  const ignored = ignoredVariables(env);
  if (ignored === null) return ok("no unknown COPILOTFLEET_ variables");
  const names = unknownVariables(env).map(({ name }) => name);
  return warning(ignored, `unset ${names.join(" ")}`);
}
