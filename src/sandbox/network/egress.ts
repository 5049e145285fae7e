import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { FleetError, quote } from "../../base/errors.js";
import { system } from "../../base/system/system.js";
import { replaceStateFile } from "../../store/file/state-folder.js";
import { packageFolder } from "../programs.js";
import type { EgressResult } from "./outbound.js";
import { STATUS_REQUEST } from "./proxy.js";

/** How long a proxy may take to start, in milliseconds. It takes a tenth of a second on a quiet machine. */
const START_MS = 15_000;
const POLL_MS = 10;

/**
 * The variables that the proxy gets. It does not get any others, because they may be secrets, and the proxy may live
 * for a long time.
 */
const VARIABLES = "PATH TZ LANG RES_OPTIONS LOCALDOMAIN".split(" ");
/** The size of the proxy's thread pool. Each look-up of a name occupies one thread. */
const THREADS = "64";

/**
 * Lets a server that is about to start reach the hosts in `entry.allow` through the proxy, and starts the proxy if
 * necessary.
 *
 * @throws FLEET_SANDBOX_UNUSABLE if the proxy does not start
 */
export async function openEgress(stateRoot: string, launchId: string, entry: ServerEntry): Promise<void> {
  const folder = makeNetworkFolder(stateRoot);
  replaceStateFile(stateRoot, join(folder, SERVERS_FOLDER, rulesName(launchId)), entry);
  const running = await askProxy(folder);
  // Only the start of a server replaces a proxy of another version. Processes that only use a server do not.
  if (running === null || running.version !== program().version) await startOnce(folder);
}

/** Starts the proxy again if it has died. Returns its status. @throws FLEET_SANDBOX_UNUSABLE if it does not start */
export async function ensureProxy(folder: string): Promise<EgressStatus> {
  return (await askProxy(folder)) ?? (await startOnce(folder));
}

const starting = new Map<string, Promise<EgressStatus>>();

async function startOnce(folder: string): Promise<EgressStatus> {
  const started = starting.get(folder) ?? start(folder).finally(() => starting.delete(folder));
  starting.set(folder, started);
  return await started;
}

async function start(folder: string): Promise<EgressStatus> {
  const { path, version } = program();
  const output = openSync(join(folder, "egress.err"), "w", 0o600);
  try {
    const given = Object.fromEntries(VARIABLES.map((name) => [name, process.env[name]]));
    spawn(process.execPath, [path, version], {
      cwd: folder,
      detached: true,
      env: { ...given, UV_THREADPOOL_SIZE: THREADS },
      stdio: ["ignore", output, output],
    })
      .on("error", () => undefined) // the loop below then gets no answer, and this function throws
      .unref();
  } finally {
    closeSync(output);
  }
  for (const until = Date.now() + START_MS; Date.now() < until; await delay(POLL_MS)) {
    const status = await askProxy(folder);
    if (status?.version === version) return status;
  }
  const [said = ""] = readFileSync(join(folder, "egress.err"), "utf8").trim().split("\n").slice(-1);
  throw unusable(`did not start${said === "" ? "" : `: ${quote(said)}`}`);
}

let known: { path: string; version: string } | undefined;

/** The path and the version of the proxy's program. */
function program(): { path: string; version: string } {
  if (known !== undefined) return known;
  const folder = packageFolder();
  const path = join(folder ?? "", "dist", "egress.js");
  if (folder === null || !existsSync(path)) throw unusable("is not beside this copy of the code");
  const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { version: string };
  known = { path, version };
  return known;
}

function unusable(why: string): FleetError {
  return new FleetError("FLEET_SANDBOX_UNUSABLE", `sandbox.network is "allow-list", but the proxy ${why}.`, {
    suggestions: ["copilotfleet doctor", 'Set sandbox.network to "none" for servers without a network.'],
  });
}

/** The content of a server's rules file. The launch writes the file, and the proxy reads it. */
export interface ServerEntry {
  user: string | null;
  server: string;
  allow: readonly string[];
}

export interface EgressStatus {
  pid: number;
  /** An id that differs for each process of the proxy. */
  id: string;
  version: string;
  /** The number of requests since the process started, by their result. */
  counts: Readonly<Record<EgressResult, number>>;
}

const ANSWER_MS = 2_000;

/** Asks the proxy for its status. Null if no proxy answers in time. @param folder the network folder */
export async function askProxy(folder: string): Promise<EgressStatus | null> {
  let held: number;
  try {
    held = openSync(folder, "r");
  } catch {
    return null;
  }
  try {
    // Connect through the descriptor, because the folder's path may be too long for a Unix socket.
    const text = await answerOf(join(system().files.pathOf(held), EGRESS_SOCKET));
    return JSON.parse(text) as EgressStatus;
  } catch {
    return null;
  } finally {
    closeSync(held);
  }
}

async function answerOf(path: string): Promise<string> {
  return await new Promise((resolve, reject) => {
    let answer = "";
    const socket = connect(path, () => socket.write(`${STATUS_REQUEST}\n`));
    const timer = setTimeout(() => socket.destroy(), ANSWER_MS);
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => {
      answer += chunk;
    });
    socket.on("error", reject);
    socket.on("close", () => {
      clearTimeout(timer);
      resolve(answer);
    });
  });
}

/** The Unix socket of the proxy, in the network folder. */
export const EGRESS_SOCKET = "egress";
/** The folder in the network folder with one file of rules for each server, named by {@link rulesName}. */
export const SERVERS_FOLDER = "servers";

/**
 * The name of the file with a server's rules. It contains only a hash of the launch id, because everyone who knows a
 * launch id can use the proxy with that server's rules, and Landlock does not hide the names of files: inotify shows
 * them.
 */
export function rulesName(launchId: string): string {
  return `${createHash("sha256").update(launchId).digest("hex")}.json`;
}

/**
 * The folder of the Unix sockets through which servers with a restricted network reach the world outside. A state
 * folder belongs to one host, so this folder does, too. No sandbox lets a server read this folder.
 */
export function networkFolder(stateRoot: string): string {
  return join(stateRoot, "network");
}

/** Makes the network folder, and the folder for rules in it. @returns the network folder */
export function makeNetworkFolder(stateRoot: string): string {
  const folder = networkFolder(stateRoot);
  mkdirSync(join(folder, SERVERS_FOLDER), { recursive: true, mode: 0o700 });
  return folder;
}
