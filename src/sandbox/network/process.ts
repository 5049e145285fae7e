import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { basename, join } from "node:path";
import { isMainThread, parentPort, Worker } from "node:worker_threads";
import { LAUNCH_VARIABLE } from "../../base/server.js";
import { type SeenProcess, system } from "../../base/system/system.js";
import { ServerRules } from "./addresses.js";
import { askProxy, EGRESS_SOCKET, type EgressStatus, rulesName, SERVERS_FOLDER, type ServerEntry } from "./egress.js";
import { EgressProxy, type EgressServer, RefusalLog } from "./proxy.js";

/*
 * The process of the proxy. Several such processes may start at the same time, so each listens on its own socket and
 * then renames that socket to `egress`. The last process to rename wins. The others notice that `egress` is no longer
 * their socket, accept no more connections, and exit when their last connection closes. So no process waits for a lock,
 * and a new process simply replaces a dead or hanging one.
 *
 * The process ends by itself when no server needs it any more. Its working folder is the network folder, because the
 * path of a Unix socket must be short.
 */

const SURVEY_MS = 5_000;
/** How many connections may wait to be accepted. Linux allows no more by default. */
const BACKLOG = 4_096;
/**
 * The age in milliseconds below which no file is removed. A server's rules exist before its process, so new rules may
 * belong to a server that is about to start.
 */
const LAUNCH_MS = 60_000;

const [version = ""] = process.argv.slice(2);

const own = `${EGRESS_SOCKET}.${randomBytes(6).toString("hex")}`;
const log = new RefusalLog("egress.log");
const proxy = new EgressProxy({ serverOf, report: (refused) => log.write(refused) });
const server = createServer({ allowHalfOpen: true }, (socket) => proxy.accept(socket, status));
/**
 * The inode number and birth time of our socket's file, which stay the same when the file is renamed. Null until the
 * file exists.
 */
let ownFile: string | null = null;
let wasEmpty = false;
let timer: NodeJS.Timeout | undefined;

function status(): EgressStatus {
  return { pid: process.pid, id: own, version, counts: proxy.counts };
}

/**
 * The servers, by the path and identity of their rules file. Parsing many rules takes long, so a known file is not read
 * again.
 */
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

/**
 * Stops accepting connections if another proxy has taken this one's place. Otherwise, removes the rules of servers that
 * have ended, and ends this process if two surveys in a row find no server.
 */
function survey(): void {
  if (fileAt(EGRESS_SOCKET) !== ownFile) {
    retire();
    return;
  }
  removeOldServers();
  const isEmpty = () => readdirSync(SERVERS_FOLDER).length === 0;
  if (isEmpty() && wasEmpty) {
    // A command that starts a server first writes the server's rules, and then looks for a proxy. So after this
    // renaming, either the command finds no proxy, or we find its rules.
    renameSync(EGRESS_SOCKET, own);
    if (isEmpty()) end();
    else renameSync(own, EGRESS_SOCKET);
  }
  wasEmpty = isEmpty();
}

function fileAt(path: string): string | null {
  const found = statSync(path, { throwIfNoEntry: false });
  // A later file may get the same inode number, so compare the birth time, too. It is the only timestamp that a server
  // cannot change.
  return found === undefined ? null : `${found.ino} ${found.birthtimeMs}`;
}

/** The oldest process of each launch, by the name of the launch's rules file. */
let processes: Readonly<Record<string, Pick<SeenProcess, "pid" | "started">>> = {};
let nextLookMs = 0;
/**
 * The pause after a scan of all processes, as a multiple of the scan's duration. So scans take at most a twentieth of
 * the time, however many processes there are.
 */
const REST = 20;

/** Removes the rules of servers that have no process any more. */
function removeOldServers(): void {
  const lost = filesIn(SERVERS_FOLDER).filter((file) => isOld(file) && !isLive(file));
  const startMs = performance.now();
  if (lost.length === 0 || startMs < nextLookMs) return;
  nextLookMs = Infinity;
  // Scan in a worker thread, because it takes long if there are many processes with large environments, and the proxy
  // must go on serving.
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

/**
 * Finds the oldest process of each launch: the server itself, because the processes that its agent starts are younger.
 */
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

/** Removes the sockets of proxies that were killed before they renamed their socket to `egress`. */
function removeOldSockets(): void {
  for (const file of filesIn("."))
    if (file.startsWith(`${EGRESS_SOCKET}.`) && isSocket(file) && isOld(file)) rmSync(file);
}

const filesIn = (folder: string) => readdirSync(folder).map((name) => join(folder, name));
const isSocket = (file: string) => statSync(file, { throwIfNoEntry: false })?.isSocket() === true;
const isOld = (file: string) =>
  Date.now() - (statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? Infinity) > LAUNCH_MS;

/** Stops accepting connections. The process exits when its last connection closes. */
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
// If another proxy of this version already answers, end without listening. If several start at the same time, most end
// here.
else if ((await askProxy("."))?.version !== version) {
  removeOldSockets();
  server.listen({ path: own, backlog: BACKLOG }, () => {
    ownFile = fileAt(own);
    renameSync(own, EGRESS_SOCKET);
    timer = setInterval(surveySafely, SURVEY_MS);
  });
}
