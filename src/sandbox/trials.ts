import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, type Suggestion, systemCode } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import {
  ALL_PROTECTIONS,
  notRestricted,
  type Protection,
  type RestrictedNetwork,
  type SandboxMode,
  type SandboxReport,
} from "../base/sandbox.js";
import { parseObject } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { mediumError, writing } from "../store/file/failures.js";
import { replaceStateFile } from "../store/file/state-folder.js";
import { run } from "./landlock.js";
import { blockedList } from "./network/addresses.js";
import { EGRESS_SOCKET, makeNetworkFolder } from "./network/egress.js";
import { realPath } from "./paths.js";
import { machineProgram, nativeFile } from "./programs.js";
import type { Command, Mechanism } from "./sandbox.js";

/**
 * How long the result of a trial is valid, in milliseconds. After that, the trial runs again, because somebody may
 * install or remove a program while `serve` runs.
 */
const COUNTS_MS = 60_000;

/** Caches the results of trials in this process, but not those of trials that throw. */
export class Trials<Key, Result> {
  readonly #known = new Map<Key, { begun: number; result: Promise<Result> }>();

  /** Returns the cached result while it is valid. Otherwise, runs `attempt`. */
  async of(key: Key, attempt: () => Promise<Result>): Promise<Result> {
    const now = performance.now();
    const known = this.#known.get(key);
    if (known !== undefined && now - known.begun < COUNTS_MS) return await known.result;
    const result = attempt();
    this.#known.set(key, { begun: now, result });
    try {
      return await result;
    } catch (error) {
      this.#known.delete(key);
      throw error;
    }
  }
}

/*
 * Each host remembers the sandbox of its last start, because an agent may make a sandbox fail: Landlock does not
 * restrict chmod. The next start must not use a weaker sandbox then.
 */

/** The sandbox of the last start on this host. */
interface Remembered {
  mode: SandboxMode;
  /**
   * Reports list the missing protections instead. Stored as what it gives, because a later version may add protections.
   */
  gives: readonly Protection[];
}

export const ACCEPT_WEAKER: Suggestion = "copilotfleet doctor --accept-weaker-sandbox";

/** The fields of {@link SandboxReport} that depend on the machine alone. */
type Found = Pick<SandboxReport, "mode" | "not">;

/**
 * Refuses a sandbox that is weaker than the one of the last start, unless the operator asks for it by naming the mode
 * "none", another mode than that start had, or a network.
 *
 * @param found the sandbox that works now
 * @param now.reasons why stronger ones do not work
 * @throws FLEET_SANDBOX_UNUSABLE
 */
export function refuseWeaker(
  stateRoot: string,
  found: Found,
  { config, env, reasons }: { config: Config; env: NodeJS.ProcessEnv; reasons: readonly string[] },
): void {
  const { mode, network } = config.sandbox;
  if (mode === "none") return;
  const before = recall(stateRoot);
  if (before === "damaged") {
    // An agent may have damaged it, so do not treat it as missing.
    const message = `The note ${quote(pathOf(stateRoot))} about this host's sandbox is damaged.`;
    throw new FleetError("FLEET_SANDBOX_UNUSABLE", message, { suggestions: ["copilotfleet doctor", ACCEPT_WEAKER] });
  }
  if (before === null || (mode !== "auto" && mode !== before.mode)) return;
  const isNetworkChosen = network !== "auto" || wantedNetwork(config, env) === null;
  const lost = lostSince(before, found).filter((protection) => protection !== "network" || !isNetworkChosen);
  if (lost.length === 0) return;
  const now = found.mode === "none" ? "no sandbox works" : `only a weaker ${found.mode} works`;
  const why = reasons.length === 0 ? "" : `: ${reasons.join(", and ")}`;
  const message = `The last server started in the sandbox ${before.mode}. Now ${now} (${notRestricted(lost)})${why}.`;
  throw new FleetError("FLEET_SANDBOX_UNUSABLE", message, {
    suggestions: ["Repair the sandbox, because an agent may have broken it.", ACCEPT_WEAKER],
  });
}

/**
 * Remembers the sandbox of a start that {@link refuseWeaker} allowed. If it is weaker than the one before, records an
 * event first. A damaged note counts as missing, because `refuseWeaker` allows that only for the mode "none".
 */
export async function remember(stateRoot: string, found: Found, events: EventLog): Promise<void> {
  const noted = recall(stateRoot);
  const before = noted === "damaged" ? null : noted;
  if (before?.mode === found.mode && String(before.gives) === String(givenBy(found))) return;
  const lost = before === null ? [] : lostSince(before, found);
  if (before !== null && lost.length > 0) {
    const detail = `from ${before.mode} to ${found.mode}; ${notRestricted(lost)}`;
    await events.record({ type: "sandbox.weakened", reason: "configuration", detail });
  }
  await write(stateRoot, found);
}

/** Lets servers start in this sandbox from now on, although it is weaker. Records an event first. */
export async function acceptWeaker(stateRoot: string, found: Found, events: EventLog): Promise<void> {
  const detail = `to ${found.mode}; ${notRestricted(found.not)}`;
  await events.record({ type: "sandbox.weakened", reason: "accepted", detail });
  await write(stateRoot, found);
}

async function write(stateRoot: string, found: Found): Promise<void> {
  const path = pathOf(stateRoot);
  const content: Remembered = { mode: found.mode, gives: givenBy(found) };
  await writing(path, async () => replaceStateFile(stateRoot, path, content));
}

/** The sandbox that this host remembers; null before the first start. "damaged" if the note has no sandbox. */
function recall(stateRoot: string): Remembered | "damaged" | null {
  const path = pathOf(stateRoot);
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    // If the state folder is not a folder, a later check reports it.
    if (["ENOENT", "ENOTDIR"].includes(systemCode(error) ?? "")) return null;
    throw mediumError("read", path, error);
  }
  const { mode, gives } = (parseObject(text) ?? {}) as Partial<Remembered>;
  return mode !== undefined && Array.isArray(gives) ? { mode, gives } : "damaged";
}

function pathOf(stateRoot: string): string {
  return join(stateRoot, "sandbox.json");
}

function givenBy({ not }: Found): Protection[] {
  return ALL_PROTECTIONS.filter((protection) => !not.includes(protection));
}

function lostSince({ gives }: Remembered, { not }: Found): Protection[] {
  return not.filter((protection) => gives.includes(protection));
}

/** A proxy of the operator, whose address is often a private one. */
const PROXY = /^(https?|all)_proxy$/i;

/**
 * The restricted network that servers should have. Null: an open one. With `auto`, that is the public network, unless
 * servers could not reach their models with it.
 */
export function wantedNetwork(
  { sandbox: { network, mode }, runtime }: Pick<Config, "sandbox" | "runtime">,
  env: NodeJS.ProcessEnv,
): RestrictedNetwork | null {
  if (network === "open") return null;
  if (network !== "auto") return network;
  const hasProxy = runtime.env.some((name) => PROXY.test(name) && (env[name] ?? "") !== "");
  return mode === "none" || hasProxy ? null : "public";
}

/**
 * Why this machine cannot restrict the network of servers in this way. Null if it can, or if the network is open.
 *
 * @param mechanism the sandbox that works on this machine; null if none does
 */
export async function failureOfNetwork(
  network: RestrictedNetwork | null,
  mechanism: Mechanism | null,
): Promise<string | null> {
  if (network === null) return null;
  if (mechanism === null) return "no sandbox works on this machine";
  // An agent with more system calls or capabilities could leave its network namespace.
  if (mechanism.not.includes("system-calls")) {
    return "the sandbox that works on this machine does not restrict system calls";
  }
  return await tryNamespace(network);
}

const trials = new Trials<boolean, string | null>();

/** Why this machine cannot make such a network namespace. Null if it can, or if the network is open. */
export async function tryNamespace(network: RestrictedNetwork | null): Promise<string | null> {
  if (network === null) return null;
  return await trials.of(network === "public", async () => {
    if (network === "public" && machineProgram("passt") === null)
      return "no folder of the machine in PATH has the program passt";
    const [program, ...args] = inTrialNamespace(["/bin/true"], network);
    const { failure } = await run(program, args);
    return failure === null ? null : `a network namespace failed (${failure})`;
  });
}

/*
 * A server with a restricted network has its own network namespace, with nothing but a loopback interface, and with
 * `public` an interface to all public addresses. `native/network.c` makes the namespace and starts a bridge. The bridge
 * passes connections on: from the server's port on the machine to the server, and from the server to the Unix sockets
 * in the network folder.
 */

/**
 * The paths that a server with this network must not reach: the folders with sockets of the machine's name service,
 * because an agent could send data out through them in the names that it looks up. With `public`, also the file with
 * the machine's name servers, which may be out of reach. Without that file, programs use the one at 127.0.0.1, where
 * the bridge listens.
 */
export function hiddenWith(network: RestrictedNetwork | undefined): string[] {
  if (network === undefined) return [];
  const folders = ["/run/systemd/resolve", "/run/resolvconf"];
  return network === "public" ? [...folders, realPath("/etc/resolv.conf")] : folders;
}

interface Namespace {
  network: RestrictedNetwork;
  /** The server's port, inside and outside. */
  port: number;
  stateRoot: string;
  /** The control groups of the server, which the bridge joins, too. */
  cgroups: readonly string[];
}

/** Wraps a command so that it runs in its own network namespace. The command's program has to be an absolute path. */
export function inNamespace(command: Command, { network, port, stateRoot, cgroups }: Namespace): Command {
  return [
    programPath(),
    ...["--port", String(port), "--sockets", makeNetworkFolder(stateRoot)],
    ...(network === "allow-list" ? ["--egress", EGRESS_SOCKET] : []),
    ...(network === "public" ? publicOptions() : []),
    ...cgroups.flatMap((folder) => ["--cgroup", folder]),
    "--",
    ...command,
  ];
}

/** Wraps a command like {@link inNamespace}, to find out whether that works here. No connection reaches the command. */
function inTrialNamespace(command: Command, network: RestrictedNetwork): Command {
  const options = network === "public" ? publicOptions() : [];
  return [programPath(), "--port", "0", "--sockets", "/", ...options, "--", ...command];
}

function publicOptions(): string[] {
  return ["--public", machineProgram("passt") ?? "/usr/bin/passt", "--blocked", blockedList()];
}

/**
 * The path of `copilotfleet-network`, which is in the launcher's folder. Without a package folder, both programs are
 * missing, so no server gets a restricted network.
 */
function programPath(): string {
  return nativeFile("copilotfleet-network") ?? "/copilotfleet-network";
}
