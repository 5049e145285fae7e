import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { basename, join } from "node:path";
import { isMainThread, parentPort, Worker } from "node:worker_threads";
import { LAUNCH_VARIABLE } from "../../model/process.js";
import { type SeenProcess, system } from "../../system/system.js";
import { ServerRules } from "./addresses.js";
import { askProxy, type EgressStatus, type ServerEntry } from "./ask.js";
import { EGRESS_SOCKET, rulesName, SERVERS_FOLDER } from "./folder.js";
import { EgressProxy, type EgressServer } from "./proxy.js";
import { RefusalLog } from "./refusal-log.js";

/*
 * The process of the proxy. Several may start at the same time, so each one listens on a socket of its own and then renames it
 * to `egress`. The last one wins. The others notice that `egress` is not theirs, and end with their last connection. So
 * nobody waits for a lock, and a dead or hanging proxy is simply replaced.
 *
 * The process ends by itself when no server needs it any more. Its working folder is the network folder, because the path of
 * a Unix socket must be short.
 */

const SURVEY_MS = 5_000;
/** As many connections may wait as Linux allows. */
const BACKLOG = 4_096;
/** The rules of a server exist before its process. */
const LAUNCH_MS = 60_000;

const [version = ""] = process.argv.slice(2);

const own = `${EGRESS_SOCKET}.${randomBytes(6).toString("hex")}`;
const log = new RefusalLog("egress.log");
const proxy = new EgressProxy({ serverOf, report: (refused) => log.write(refused) });
const server = createServer({ allowHalfOpen: true }, (socket) => proxy.accept(socket, status));
/** Identifies our socket among files of any name. Null until it exists. */
let ownFile: string | null = null;
let wasEmpty = false;
let timer: NodeJS.Timeout | undefined;

function status(): EgressStatus {
  return { pid: process.pid, id: own, version, counts: proxy.counts };
}

/** By file. To read the rules takes long if there are many. */
const known = new Map<string, EgressServer>();

function serverOf(launchId: string): EgressServer | null {
  const path = join(SERVERS_FOLDER, rulesName(launchId));
  try {
    const file = `${path} ${fileAt(path)}`;
    const entry = known.has(file) ? null : (JSON.parse(readFileSync(path, "utf8")) as ServerEntry);
    if (entry !== null)
      known.set(file, { user: entry.user, server: entry.server, rules: new ServerRules(entry.allow) });
    return known.get(file) ?? null;
  } catch {
    return null;
  }
}

/** Ends this process if another proxy has taken its place, or if there are no servers any more. */
function survey(): void {
  if (fileAt(EGRESS_SOCKET) !== ownFile) {
    retire();
    return;
  }
  removeOldServers();
  const isEmpty = () => readdirSync(SERVERS_FOLDER).length === 0;
  if (isEmpty() && wasEmpty) {
    // A command that starts a server first writes its rules, and then looks for a proxy. So it finds none, or we find the rules.
    renameSync(EGRESS_SOCKET, own);
    if (isEmpty()) end();
    else renameSync(own, EGRESS_SOCKET);
  }
  wasEmpty = isEmpty();
}

function fileAt(path: string): string | null {
  const found = statSync(path, { throwIfNoEntry: false });
  // A later file may have the same number. A server can change the other times of a file, but not its time of birth.
  return found === undefined ? null : `${found.ino} ${found.birthtimeMs}`;
}

/** By file name: the oldest process of a launch. */
let processes: Readonly<Record<string, Pick<SeenProcess, "pid" | "started">>> = {};
let nextLookMs = 0;
/** Looking takes at most a twentieth of the time, however many processes there are. */
const REST = 20;

/** Removes the rules of servers that have no process any more. */
function removeOldServers(): void {
  const lost = filesIn(SERVERS_FOLDER).filter((file) => isOld(file) && !isLive(file));
  const startMs = performance.now();
  if (lost.length === 0 || startMs < nextLookMs) return;
  nextLookMs = Infinity;
  // In a thread of its own, because servers can have many processes with large environments.
  new Worker(new URL(import.meta.url), { resourceLimits: { maxOldGenerationSizeMb: 256 } })
    .on("message", (found: typeof processes) => {
      processes = found;
      known.clear();
      for (const file of lost) if (isOld(file) && !isLive(file)) rmSync(file, { force: true });
    })
    .on("error", (error) => process.stderr.write(`${String(error)}\n`))
    .on("exit", () => {
      const endMs = performance.now();
      nextLookMs = endMs + REST * (endMs - startMs);
    })
    .unref();
}

function isLive(file: string): boolean {
  const oldest = processes[basename(file)];
  return oldest !== undefined && system().processes.find(oldest.pid)?.started === oldest.started;
}

/** The oldest process of each launch, which is none that the agent has started. */
function lookForProcesses(): typeof processes {
  const all = system()
    .processes.withEnvironment([LAUNCH_VARIABLE])
    .sort((a, b) => Number(b.started) - Number(a.started));
  return Object.fromEntries(
    all.flatMap(({ pid, started, variables: { [LAUNCH_VARIABLE]: launchId } }) =>
      launchId === undefined ? [] : [[rulesName(launchId), { pid, started }]],
    ),
  );
}

/** Removes the sockets of proxies that were killed before their sockets had their final name. */
function removeOldSockets(): void {
  for (const file of filesIn("."))
    if (file.startsWith(`${EGRESS_SOCKET}.`) && isSocket(file) && isOld(file)) rmSync(file);
}

const filesIn = (folder: string) => readdirSync(folder).map((name) => join(folder, name));
const isSocket = (file: string) => statSync(file, { throwIfNoEntry: false })?.isSocket() === true;
const isOld = (file: string) =>
  Date.now() - (statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? Infinity) > LAUNCH_MS;

/** Accepts no connection any more, and ends with the last one. */
function retire(): void {
  clearInterval(timer);
  server.close();
}

function end(): void {
  retire();
  rmSync(own, { force: true });
  for (const socket of proxy.open) socket.destroy();
}

function surveySafely(): void {
  try {
    survey();
  } catch (error) {
    if (statSync(SERVERS_FOLDER, { throwIfNoEntry: false }) === undefined) end();
    else process.stderr.write(`${String(error)}\n`); // the next survey may succeed
  }
}

if (!isMainThread) parentPort?.postMessage(lookForProcesses());
// If several start at the same time, most find the first one here.
else if ((await askProxy("."))?.version !== version) {
  removeOldSockets();
  server.listen({ path: own, backlog: BACKLOG }, () => {
    ownFile = fileAt(own);
    renameSync(own, EGRESS_SOCKET);
    timer = setInterval(surveySafely, SURVEY_MS);
  });
}
