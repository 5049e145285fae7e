import { accessSync, constants, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../base/errors.js";
import { ifThere } from "../../base/if-there.js";
import { findRuntime, OLDEST_RUNTIME, packageVersion } from "../../runtime/launch/versions.js";
import { packageFolder } from "../../sandbox/programs.js";
import { askRuntime } from "../versions.js";
import { type Context, type Finding, ok, type Row, warning } from "./checks.js";

/** The last day of security fixes for each version of Node.js: https://github.com/nodejs/Release. */
const END_OF_LIFE: Readonly<Record<number, string>> = {
  20: "2026-04-30",
  22: "2027-04-30",
  23: "2025-06-01",
  24: "2028-04-30",
  25: "2026-06-01",
  26: "2029-04-30",
};

/** The checks that need no configuration. */
export const INSTALLATION: readonly Row[] = [
  { name: "node", look: () => nodeIsSupported(process.versions.node, new Date()) },
  { name: "code", look: () => codeIsProtected(packageFolder(), process.getuid?.() ?? 0) },
];

export const RUNTIME: Row = { name: "runtime", look: runtimeStarts, isSlow: true, cleansUp: true };

export function nodeIsSupported(version: string, now: Date): Finding {
  const detail = `Node.js ${version} on ${process.platform}-${process.arch}`;
  const end = END_OF_LIFE[Number.parseInt(version, 10)];
  if (end === undefined || now.toISOString().slice(0, 10) <= end) return ok(detail);
  const fix = "Install Node.js 22.12 or later, or 24, and then restart serve.";
  return warning(`${detail}; this version has had no security fixes since ${end}`, fix);
}

/**
 * Warns if the fleet's account owns the fleet's code or may write to it. An agent without a sandbox could then change the
 * code, and one under Landlock could change its modes.
 */
export function codeIsProtected(folder: string | null, uid: number): Finding {
  if (folder === null || uid === 0) return ok(folder ?? "part of another package");
  const native = join(folder, "native", `linux-${process.arch}`);
  const programs = (ifThere(() => readdirSync(native)) ?? []).map((name) => join(native, name));
  const paths = [folder, join(folder, "package.json"), join(folder, "bin"), join(folder, "dist"), native, ...programs];
  const items = paths.filter((path) => mayChange(path, uid));
  if (items.length === 0) return ok(`${folder}, which this account cannot change`);
  const detail = `this account can change the fleet's code in ${folder}, so an agent might`;
  return warning(detail, "Install the package as another user, such as root.", items);
}

function mayChange(path: string, uid: number): boolean {
  if (ifThere(() => statSync(path))?.uid === uid) return true;
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return false;
  }
}

/** Starts the runtime, because a file that exists may still not run. */
async function runtimeStarts({ config, env, signal }: Context): Promise<Finding> {
  const { path, origin } = findRuntime(config.runtime.path, env);
  const answer = await askRuntime(path, env, signal);
  const version = packageVersion(path);
  const from = version === null ? origin : `${origin}, package ${version}`;
  return ok(
    `${path} (${from}) starts and answers as version ${answer.version}; the oldest supported version is ${OLDEST_RUNTIME}`,
  );
}
