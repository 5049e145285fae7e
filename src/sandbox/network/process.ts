import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { basename, join } from "node:path";
import { LAUNCH_VARIABLE } from "../../model/process.js";
import { system } from "../../system/system.js";
import { ServerRules } from "./addresses.js";
import { askProxy, type EgressStatus, type ServerEntry } from "./ask.js";
import { EGRESS_SOCKET, SERVERS_FOLDER } from "./folder.js";
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

function serverOf(launchId: string): EgressServer | null {
  // The launch id becomes part of a path.
  if (!/^[\w-]{1,64}$/.test(launchId)) return null;
  try {
    const entry = JSON.parse(readFileSync(join(SERVERS_FOLDER, `${launchId}.json`), "utf8")) as ServerEntry;
    return { user: entry.user, server: entry.server, rules: new ServerRules(entry.allow) };
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
  // A later file may have the same number.
  return found === undefined ? null : `${found.ino} ${found.mtimeMs}`;
}

/** Removes the rules of servers that have no process any more. */
function removeOldServers(): void {
  const old = filesIn(SERVERS_FOLDER).filter(isOld);
  if (old.length === 0) return;
  const processes = system().processes.withEnvironment([LAUNCH_VARIABLE]);
  const live = new Set(processes.map(({ variables }) => `${variables[LAUNCH_VARIABLE]}.json`));
  for (const file of old) if (!live.has(basename(file))) rmSync(file, { force: true });
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

// If several start at the same time, most find the first one here.
if ((await askProxy("."))?.version !== version) {
  removeOldSockets();
  server.listen(own, () => {
    ownFile = fileAt(own);
    renameSync(own, EGRESS_SOCKET);
    timer = setInterval(surveySafely, SURVEY_MS);
  });
}
