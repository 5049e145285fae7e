import { accessSync, constants, existsSync, realpathSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { shellQuote } from "../../config/values/text.js";
import { FleetError, quote, type Suggestion, systemCode } from "../../errors.js";

export interface Runtime {
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
  const absolute = resolve(path);
  const useBundled: Suggestion[] = [
    setting === "runtime.path" ? "Leave runtime.path and COPILOTFLEET_RUNTIME_PATH out." : `unset ${setting}`,
  ];
  const use = `${setting} must name the native Copilot program, or be left out to use the bundled runtime`;
  let real: string;
  try {
    real = realpathSync(absolute);
  } catch (cause) {
    if (systemCode(cause) !== "ENOENT") {
      throw unusable(`${setting}: ${quote(path)} cannot be read. ${use}.`, useBundled, cause);
    }
    throw new FleetError("FLEET_RUNTIME_MISSING", `${setting}: there is no file ${quote(path)}. ${use}.`, {
      cause,
      suggestions: useBundled,
    });
  }
  const native = basename(real) === "npm-loader.js" ? nativeBesideWrapper(real) : real;
  if (native === null) {
    const message = `${setting}: ${quote(path)} is the npm wrapper, and the native program it runs is not installed.`;
    throw unusable(message, useBundled);
  }
  if (!statSync(native).isFile()) throw unusable(`${setting}: ${quote(path)} is not a file. ${use}.`, useBundled);
  try {
    accessSync(native, constants.X_OK);
  } catch (cause) {
    throw unusable(`${setting}: ${quote(path)} is not executable. ${use}.`, [`chmod +x ${shellQuote(native)}`], cause);
  }
  return native;
}

function unusable(message: string, suggestions: Suggestion[], cause?: unknown): FleetError {
  return new FleetError("FLEET_RUNTIME_UNUSABLE", message, { cause, suggestions });
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
    "FLEET_RUNTIME_MISSING",
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
