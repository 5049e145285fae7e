import { ignoredVariables, unknownVariables } from "../../config/load/environment.js";
import { loadConfig } from "../../config/load/load.js";
import { openParts } from "../parts.js";
import { type Check, Checks, type Context, type DoctorOptions, type Finding, ok, warning } from "./checks.js";
import { HOSTS, OPERATION, STORE } from "./operation.js";
import { CERTIFICATES, INSTALLATION, RUNTIME, SETTINGS, SIGN_ON } from "./settings.js";
import { DAMAGE, DISK_SPACE, PERMISSIONS, RECORDS, REGISTRY, SHARED_STORAGE } from "./storage.js";

export interface DoctorResult {
  /** Whether no check has failed. Warnings, and checks that `quick` skips, do not count. */
  ok: boolean;
  checks: Check[];
  /** The exit code for the first check that still fails, as the public contract defines it; 0 if none fails. */
  exit: number;
}

/** Checks everything that the fleet depends on, one check after the other. Changes nothing without `fix`. */
export async function examine(options: DoctorOptions): Promise<DoctorResult> {
  const context = { ...options } as Context;
  const checks = new Checks(context);
  const configuration = () => {
    const { sources } = Object.assign(context, loadConfig(options));
    return ok(sources.length === 0 ? "defaults; no file" : sources.join(", "));
  };
  // `openParts` checks the state folder.
  const stateFolder = () => {
    context.parts = openParts(options);
    return ok(context.stateRoot);
  };
  const environment = () => unknownSettings(options.env);
  await checks.run([
    ...INSTALLATION,
    { name: "configuration", look: configuration },
    { name: "environment", look: environment },
  ]);
  const { serve, host, identity, storage, store } = (context as Partial<Context>).config ?? {};
  const hasTls = [serve?.tls.cert, host?.tls.cert, host?.tls.ca].some((path) => typeof path === "string");
  const hasSignOn = identity !== undefined && (identity.jwt.length > 0 || identity.github.api !== null);
  try {
    await checks.run([...SETTINGS, ...(hasTls ? [CERTIFICATES] : []), RUNTIME], "configuration");
    await checks.run([{ name: "state folder", look: stateFolder }, PERMISSIONS, DISK_SPACE], "configuration");
    if (hasSignOn) await checks.run([SIGN_ON]);
    await checks.run([STORE], "state folder");
    // Files that cannot be written, for example on a full disk, may still be readable.
    await checks.run([DAMAGE, REGISTRY], store?.kind === "file" ? "state folder" : "store");
    await checks.run([...RECORDS, ...OPERATION], "registry");
    if (store?.kind === "redis") await checks.run([HOSTS], "registry");
    if (storage !== undefined && storage.shared !== null) await checks.run([SHARED_STORAGE], "registry");
  } finally {
    await (context as Partial<Context>).parts?.close();
  }
  return { ok: checks.exit === 0, checks: checks.all, exit: checks.exit };
}

function unknownSettings(env: NodeJS.ProcessEnv): Finding {
  const ignored = ignoredVariables(env);
  if (ignored === null) return ok("no unknown COPILOTFLEET_ variables");
  const names = unknownVariables(env).map(({ name }) => name);
  return warning(ignored, `unset ${names.join(" ")}`);
}
