import { accessSync, constants, existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { FleetError, quote, type Suggestion, systemCode } from "../../base/errors.js";
import { ifThere } from "../../base/if-there.js";
import { parseObject, shellQuote } from "../../base/values/text.js";

interface Package {
  name: string | null;
  version: string | null;
}

/** The version of this package; "unknown" if another package contains a copy of its code. */
export function ownVersion(): string {
  const { name, version } = packageOf(fileURLToPath(import.meta.url)) ?? {};
  return (name === "copilotfleet" ? version : null) ?? "unknown";
}

/** The version of the installed `@github/copilot-sdk`, or null if it is not installed. */
export function sdkVersion(): string | null {
  try {
    return packageVersion(createRequire(import.meta.url).resolve("@github/copilot-sdk"));
  } catch {
    return null;
  }
}

/** The version of the package that a file belongs to, or null outside a package. */
export function packageVersion(path: string): string | null {
  return packageOf(path)?.version ?? null;
}

function packageOf(path: string): Package | null {
  for (let folder = dirname(path); folder !== dirname(folder); folder = dirname(folder)) {
    const text = ifThere(() => readFileSync(join(folder, "package.json"), "utf8"));
    if (text === null) continue;
    const { name, version } = parseObject(text) ?? {};
    // Packages have further manifests without a name, such as the one that marks a folder of CommonJS files.
    if (typeof name === "string") return { name, version: typeof version === "string" ? version : null };
  }
  return null;
}

/**
 * The protocol versions that this fleet speaks. `PROTOCOLS` in `door/policy/methods.ts` has the front door's tables for
 * each. The front door does not translate between versions: it connects a client only to servers of the same version.
 */
export const SUPPORTED_VERSIONS: ReadonlySet<number> = new Set([3]);

/** The releases that speak each version. A client and a runtime must speak the same version. */
const RELEASES: Readonly<Record<number, { sdk: number; names: string }>> = {
  3: { sdk: 1, names: "SDK 1.x and CLI 1.0.112 or earlier" },
  4: { sdk: 2, names: "SDK 2.x and CLI 1.0.113 or later" },
};

/**
 * The error for a runtime of another protocol version. `version` comes from its answer; undefined if the answer has
 * none.
 */
export function runtimeMismatch(where: string, version: unknown, cause?: unknown): FleetError {
  const supported = [...SUPPORTED_VERSIONS];
  const what = version === undefined ? "an older version" : `version ${String(version)}`;
  return new FleetError(
    "FLEET_RUNTIME_UNUSABLE",
    `The runtime at ${where} speaks ${what} of the Copilot protocol; this fleet needs version ${supported.join(" or ")}. ${releases(supported, version)}`,
    { cause, suggestions: ["Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime."] },
  );
}

/**
 * The oldest release of the runtime that loses no reply when it is killed. Measured: 1.0.81 has a reply on disk when it
 * reports the end of the turn; 1.0.79, 1.0.80 and 1.0.81-0 up to 0.1 s later. `.ci/run` tests with this release.
 */
export const OLDEST_RUNTIME = "1.0.81";
/** The first release that names a prompt's message id in the `user.message` with which the prompt begins. */
const FIRST_WITH_PROMPT_IDS = "1.0.83";

/** Whether a runtime reports the message id of each prompt that it begins. @param version as the runtime reports it */
export function namesPrompts(version: unknown): boolean {
  return !isBefore(version, FIRST_WITH_PROMPT_IDS);
}

/** Refuses a runtime that is older than {@link OLDEST_RUNTIME}. @param version as the runtime reports it */
export function checkRuntimeVersion(where: string, version: string): void {
  if (!isBefore(version, OLDEST_RUNTIME)) return;
  throw new FleetError(
    "FLEET_RUNTIME_UNUSABLE",
    `The runtime at ${where} is version ${version}. The oldest version that this fleet supports is ${OLDEST_RUNTIME}.`,
    { suggestions: ["Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime."] },
  );
}

/** Whether a version precedes a release. False for a text that is not a version. Prereleases count as the release. */
function isBefore(version: unknown, release: string): boolean {
  if (typeof version !== "string" || !/^\d/.test(version)) return false;
  return version.localeCompare(release, "en", { numeric: true }) < 0;
}

/** The error for a client of another protocol version. `spoken` lists the versions that it could use here. */
export function clientMismatch(version: number, spoken: readonly number[]): FleetError {
  return new FleetError(
    "FLEET_PROTOCOL_UNSUPPORTED",
    `This front door speaks version ${spoken.join(" and ")} of the Copilot protocol; the client speaks version ${version}. ${releases(spoken, version)}`,
    { suggestions: spoken.map((known): Suggestion => `npm install @github/copilot-sdk@${RELEASES[known]?.sdk}`) },
  );
}

function releases(spoken: readonly number[], version: unknown): string {
  const known = [...spoken, Number(version)].filter((each, at, all) => all.indexOf(each) === at && each in RELEASES);
  return known.map((each) => `Version ${each} is spoken by ${RELEASES[each]?.names}.`).join(" ");
}

interface Runtime {
  path: string;
  origin: "bundled" | "config" | "environment";
}

/**
 * Finds the native runtime: the configured path, or else `COPILOT_CLI_PATH`, or else the program that
 * `@github/copilot-sdk` includes. If the path names the npm wrapper of the full CLI (`npm-loader.js`), returns the
 * program that the wrapper runs, because a signal to the wrapper does not reach that program.
 */
export function findRuntime(configuredPath: string | null, env: NodeJS.ProcessEnv): Runtime {
  if (configuredPath !== null) return { path: usable(configuredPath, "runtime.path"), origin: "config" };
  const fromEnvironment = env.COPILOT_CLI_PATH;
  if (fromEnvironment !== undefined && fromEnvironment !== "") {
    return { path: usable(fromEnvironment, "COPILOT_CLI_PATH"), origin: "environment" };
  }
  return { path: bundledRuntime(), origin: "bundled" };
}

function usable(path: string, setting: string): string {
  const use = `${setting} must name the native Copilot program, or be left out to use the bundled runtime`;
  const useBundled: Suggestion =
    setting === "runtime.path" ? "Leave runtime.path and COPILOTFLEET_RUNTIME_PATH out." : `unset ${setting}`;
  const refused = (problem: string, cause?: unknown, suggestion: Suggestion = useBundled) =>
    new FleetError("FLEET_RUNTIME_UNUSABLE", `${setting}: ${problem}.`, { cause, suggestions: [suggestion] });
  let real: string;
  try {
    real = realpathSync(resolve(path));
  } catch (cause) {
    const isMissing = systemCode(cause) === "ENOENT";
    throw refused(`${isMissing ? `there is no file ${quote(path)}` : `${quote(path)} cannot be read`}. ${use}`, cause);
  }
  const native = basename(real) === "npm-loader.js" ? nativeBesideWrapper(real) : real;
  if (native === null)
    throw refused(`${quote(path)} is the npm wrapper, and the native program it runs is not installed`);
  if (!statSync(native).isFile()) throw refused(`${quote(path)} is not a file. ${use}`);
  try {
    accessSync(native, constants.X_OK);
  } catch (cause) {
    throw refused(`${quote(path)} is not executable. ${use}`, cause, `chmod +x ${shellQuote(native)}`);
  }
  return native;
}

/**
 * The native program that the npm wrapper runs; null if it is not installed. It is in the package for this platform,
 * which `@github/copilot` installs beside itself.
 */
function nativeBesideWrapper(wrapper: string): string | null {
  const require = createRequire(wrapper);
  for (const platform of platforms()) {
    const folder = packageFolder(require, `@github/copilot-${platform}`);
    if (folder !== null && existsSync(join(folder, "copilot"))) return join(folder, "copilot");
  }
  return null;
}

function bundledRuntime(): string {
  const sdk = createRequire(createRequire(import.meta.url).resolve("@github/copilot-sdk"));
  for (const platform of platforms()) {
    const folder = packageFolder(sdk, `@github/copilot-sdk-${platform}`);
    if (folder === null) continue;
    const prebuilds = join(folder, "prebuilds", platform);
    const path = join(prebuilds, "copilot-runtime");
    // The program loads `runtime.node` from the same folder when it starts.
    if (existsSync(path) && existsSync(join(prebuilds, "runtime.node"))) return path;
  }
  throw new FleetError(
    "FLEET_RUNTIME_UNUSABLE",
    `@github/copilot-sdk brought no runtime for ${process.platform}-${process.arch}: its optional package is not installed.`,
    { suggestions: ["npm install --include=optional", "Set COPILOT_CLI_PATH to an installed Copilot program."] },
  );
}

/**
 * The names of this platform in package names. Linux has two names, because there is one package for glibc and one for
 * musl. npm installs only the package that fits the machine.
 */
function platforms(): string[] {
  const native = `${process.platform}-${process.arch}`;
  return process.platform === "linux" ? [native, `linuxmusl-${process.arch}`] : [native];
}

function packageFolder(require: NodeJS.Require, name: string): string | null {
  for (const base of require.resolve.paths(name) ?? []) {
    const folder = join(base, ...name.split("/"));
    if (existsSync(join(folder, "package.json"))) return folder;
  }
  return null;
}
