import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { deadline } from "../base/clock.js";
import { type FleetError, isFleetError } from "../base/errors.js";
import { loadConfig, type PartialConfig } from "../config/load/load.js";
import type { FleetOptions } from "../hosts/options.js";
import { RawConnection } from "../runtime/client/raw-connection.js";
import { findRuntime, ownVersion, sdkVersion } from "../runtime/launch/versions.js";
import { Fleet } from "./fleet.js";

const ANSWER_MS = 10_000;
const TRIAL_USER = "trial";

/** The versions of copilotfleet and of everything that it runs with. */
export interface Versions {
  copilotfleet: string;
  node: string;
  /** Null if `@github/copilot-sdk` is not installed. */
  sdk: string | null;
  runtime: {
    /** Null if the runtime does not start. */
    version: string | null;
    /** Null if no runtime was found. */
    path: string | null;
    /** The version of the Copilot protocol; null if the runtime does not start. */
    protocol: number | null;
  };
  /** The platform and the processor: `linux-x64`. */
  platform: string;
  /** The version of the `serve` that supervises this host; null if none runs, "unknown" if it recorded no version. */
  serve: string | null;
}

interface VersionsOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  configFile?: string;
  /** When it aborts, the trial server ends, and the call fails with the signal's reason. */
  signal: AbortSignal;
}

/**
 * Finds out the versions. If a version cannot be found, `problems` has the reason, but the call does not fail, because
 * people need the other versions to report a problem.
 */
export async function findVersions(options: VersionsOptions): Promise<{ versions: Versions; problems: FleetError[] }> {
  const problems: FleetError[] = [];
  const attempt = async <T>(look: () => T | Promise<T>): Promise<T | null> => {
    try {
      return await look();
    } catch (error) {
      if (!isFleetError(error)) throw error;
      if (problems.every(({ message }) => message !== error.message)) problems.push(error);
      return null;
    }
  };
  const loaded = await attempt(() => loadConfig(options));
  const [runtime, serve] = await Promise.all([
    // If the configuration cannot be used, show the runtime that the fleet uses without a configuration.
    runtimeOf(loaded?.config.runtime.path ?? null, options, attempt),
    loaded === null ? null : attempt(async () => await versionOfServe(options)),
  ]);
  options.signal.throwIfAborted();
  const versions = {
    copilotfleet: ownVersion(),
    node: process.versions.node,
    sdk: sdkVersion(),
    runtime,
    platform: `${process.platform}-${process.arch}`,
    serve,
  };
  return { versions, problems };
}

async function runtimeOf(
  configuredPath: string | null,
  { env, signal }: Pick<VersionsOptions, "env" | "signal">,
  attempt: <T>(look: () => T | Promise<T>) => Promise<T | null>,
): Promise<Versions["runtime"]> {
  const found = await attempt(() => findRuntime(configuredPath, env));
  const answer = found === null ? null : await attempt(async () => await askRuntime(found.path, env, signal));
  return { version: answer?.version ?? null, path: found?.path ?? null, protocol: answer?.protocol ?? null };
}

async function versionOfServe(options: VersionsOptions): Promise<string | null> {
  await using fleet = await Fleet.open(options);
  const supervisor = await fleet.pool.supervisor();
  return supervisor === null ? null : (supervisor.version ?? "unknown");
}

/** Contains every key as null, because a configuration file could set a key that is left out. */
const NO_APP = { appId: null, installationId: null, privateKey: null };

/**
 * Starts the runtime and asks for its version and its protocol, because a file that exists may still not run. When the
 * signal aborts, ends the runtime first, and then fails.
 */
export async function askRuntime(
  path: string,
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
): Promise<{ version: string; protocol: number }> {
  // The trial must not use the fleet's tokens.
  const auth = { githubToken: null, githubApp: NO_APP };
  return await withTrialFleet({ env, config: { runtime: { path }, auth } }, async (trial) => {
    const { server } = await trial.servers.spawn(TRIAL_USER, { signal });
    const { token } = await trial.clients.connectInfo(TRIAL_USER);
    const endpoint = { address: server.host, port: server.port ?? 0, token };
    using limit = deadline(ANSWER_MS, signal);
    await using connection = await RawConnection.open(endpoint, limit.signal);
    return { version: connection.version, protocol: connection.protocolVersion };
  });
}

/**
 * Runs `use` with a fleet whose state is in a temporary folder. Afterwards, stops its servers and deletes the folder.
 */
export async function withTrialFleet<T>(
  { env, config }: { env: NodeJS.ProcessEnv; config: PartialConfig },
  use: (fleet: Fleet, options: FleetOptions) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-trial-"));
  try {
    const options: FleetOptions = {
      cwd: folder,
      env: { ...env, COPILOTFLEET_HOME: join(folder, "state") },
      // The trial must not touch the store or the storage of a real fleet.
      config: { ...config, store: "file", storage: { shared: null } },
    };
    await using fleet = await Fleet.open(options);
    try {
      return await use(fleet, options);
    } finally {
      const running = (await fleet.servers.list()).filter(({ pid }) => pid !== null);
      await fleet.servers.stop(
        running.map(({ id }) => id),
        { force: true },
      );
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
