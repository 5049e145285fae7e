import { chmod, lstat, readdir, statfs } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type FleetError, isFleetError, type Suggestion, systemCode } from "../../base/errors.js";
import { ifThereLater } from "../../base/if-there.js";
import { lackingIn, NO_SANDBOX } from "../../base/sandbox.js";
import { system } from "../../base/system/system.js";
import { asSentence, countOf, shellQuote } from "../../base/values/text.js";
import { gatherEvents } from "../../hosts/all-events.js";
import { listTokens } from "../../identity/tokens.js";
import { isLocal, problemsOf, usable } from "../../runtime/files/shared-storage.js";
import { readSessionFolder } from "../../runtime/history/session-state.js";
import { sandboxNow } from "../../sandbox/sandbox.js";
import { unlikeHosts } from "../../serve/heartbeat.js";
import { launchesOf } from "../../servers/admission.js";
import { findServers } from "../../servers/repair.js";
import { isBroken, isRunning } from "../../servers/server.js";
import { endStrays, findStrays } from "../../sessions/gc/unused-servers.js";
import { adviceForOwner } from "../../store/file/state-folder.js";
import { purgesUnderWay } from "../../store/purges.js";
import { ServerGroup } from "../groups/servers.js";
import type { FleetParts } from "../parts.js";
import { CLOCK_ADVICE, type Context, type Finding, failed, mended, ok, type Row, warning } from "./checks.js";

const LITTLE_SPACE_BYTES = 1_000_000_000;
const FEW_FILES = 10_000;
/** How far in the future a last use may be before it is reported, in milliseconds. A clock may have been set back. */
const CLOCK_TOLERANCE_MS = 60_000;

export const DISK_SPACE: Row = { name: "disk space", look: diskSpace };

/** The check of the folder that all hosts share. Runs only if the configuration names such a folder. */
export const SHARED_STORAGE: Row = { name: "shared storage", look: sharedFolder };

async function diskSpace({ config, stateRoot }: Context): Promise<Finding> {
  const { shared } = config.storage;
  const spaces = await Promise.all([stateRoot, ...(shared === null ? [] : [shared])].map(freeSpace));
  const little = spaces.filter(({ bytes, files }) => bytes < LITTLE_SPACE_BYTES || files < FEW_FILES);
  const detail = (little.length === 0 ? spaces : little)
    .map(
      ({ path, bytes, files }) =>
        `${megabytes(bytes)}${files < FEW_FILES ? ` and ${files} files` : ""} free at ${path}`,
    )
    .join(", ");
  if (little.length === 0) return ok(detail);
  return warning(
    `only ${detail}; on a full disk, the fleet refuses new sessions and turns, but gc, delete and stop work`,
    "copilotfleet gc --dry-run",
  );
}

interface Space {
  path: string;
  bytes: number;
  /** How many more files the disk can hold. Infinity if the file system has no fixed number of files. */
  files: number;
}

/** The free space for this account at the path, or at the nearest existing folder above it. */
async function freeSpace(path: string): Promise<Space> {
  try {
    const { bavail, bsize, files, ffree } = await statfs(path);
    return { path, bytes: bavail * bsize, files: files === 0 ? Number.POSITIVE_INFINITY : ffree };
  } catch (error) {
    if (systemCode(error) !== "ENOENT" || dirname(path) === path) throw error;
    return { ...(await freeSpace(dirname(path))), path };
  }
}

function megabytes(bytes: number): string {
  return bytes < LITTLE_SPACE_BYTES ? `${Math.floor(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

async function sharedFolder({ config, parts }: Context): Promise<Finding> {
  const shared = config.storage.shared ?? "";
  const hosts = await parts.directory.list();
  const fileSystem = await usable(shared, async () => system().files.of(shared));
  const at = `${shared} on ${fileSystem.type} (${fileSystem.source} at ${fileSystem.mountPoint})`;
  const problems = await problemsOf(shared);
  if (problems.length > 0) {
    return failed(
      `${at}: this file system ${problems.join(", and it ")}`,
      "Put the shared storage on another file system, such as NFS 4 or CephFS.",
    );
  }
  const missing = await unlikeHosts(shared, hosts);
  if (missing.length > 0) {
    const detail = `${at} is not the folder that ${missing.join(", ")} shares`;
    return failed(detail, `findmnt --target ${shellQuote(shared)}  # on each host`);
  }
  const seen = hosts.filter(({ gone, storage }) => !gone && storage !== null).map(({ name }) => name);
  const proof =
    seen.length === 0
      ? "no host serves, so nothing proves that other hosts share it"
      : `shared with ${seen.join(", ")}`;
  const doubt = isLocal(fileSystem) ? ". This file system belongs to one machine" : "";
  return ok(`${at}: writable, and renames and links work; ${proof}${doubt}`);
}

/** The check that all other checks of the recorded state depend on. */
export const REGISTRY: Row = {
  name: "registry",
  look: async ({ parts, fix }) => {
    try {
      return ok(`servers recorded: ${Object.keys((await parts.store.registry.read()).servers).length}`);
    } catch (error) {
      if (!isFleetError(error, "FLEET_STATE_CORRUPT")) throw error;
      return await rebuilt(error, { parts, fix });
    }
  },
};

/** Rebuilds a registry of which neither a revision nor the copy is readable. Without `fix`, only advises it. */
async function rebuilt(error: FleetError, { parts, fix }: Pick<Context, "parts" | "fix">): Promise<Finding> {
  const found = fix ? await rebuildRegistry(parts) : null;
  if (found === null)
    throw error.reworded(({ suggestions }) => ({
      suggestions: fix ? suggestions : ["Add --fix to rebuild it from the folders and processes of the servers."],
    }));
  const { servers, unknown } = found;
  const lost = "The working folders of servers (--cwd) are not known any more, and the pool is open";
  return mended(
    `${asSentence(error.message)} Rebuilt it from the folders and processes of ${countOf(servers.length, "server")}. ${lost}`,
    unknown.map((id) => `${id}: left out, because its user is not known; it is back when that user needs it`),
  );
}

/** Resolves with null if the store does not support it. `unknown`: ids of folders whose user is not known. */
async function rebuildRegistry({ store, stateRoot, hosts }: FleetParts) {
  const { registry } = store;
  if (registry.rebuild === undefined) return null;
  const owners = (await store.sessions.list()).map(({ owner }) => owner);
  const started = await gatherEvents(hosts, { types: ["server.started"] });
  const users = [...owners, ...started.flatMap(({ user }) => user ?? [])];
  const { servers, unknown } = findServers(stateRoot, users);
  await registry.rebuild({ servers: Object.fromEntries(servers.map((server) => [server.id, server])) });
  await registry.update(() => undefined);
  store.takeWarnings();
  return { servers, unknown };
}

/** The check before that of the registry, which is rebuilt with the help of the records. */
export const DAMAGE: Row = { name: "damage", look: damage };

export const RECORDS: readonly Row[] = [
  { name: "sessions", look: sessionsAreUsable },
  { name: "purges", look: purgesAreComplete },
  { name: "servers", look: runningServers },
  { name: "sandboxes", look: sandboxesAreCurrent },
  { name: "stray processes", look: strayProcesses },
];

/** Reports damaged files of the state, and restores them from their copies. */
async function damage({ parts: { store, takeWarnings }, fix }: Context): Promise<Finding> {
  const found = await store.damage();
  if (found.length === 0) {
    // Reads of records add warnings. The next check reports a registry that cannot be read.
    await store.registry.read().catch(() => undefined);
    await store.sessions.list();
    await listTokens(store);
    await store.placements.list();
    const warnings = takeWarnings();
    return warnings.length === 0 ? ok("none") : warning("none; but the store reports a problem", undefined, warnings);
  }
  const items = found.map(({ file, detail }) => `${file}: ${detail}`);
  const count = `damaged files: ${found.length}`;
  if (!fix) return failed(count, "Check the disk. Add --fix to restore them from their copies.", items);
  const repaired = (await store.repair()).map(({ file, keptAs, copiedAt }) => {
    const source =
      copiedAt === null ? "begun again, because there is no copy" : `restored from ${copiedAt.toISOString()}`;
    return `${file}: ${source}; the damaged file is kept as ${keptAs}`;
  });
  return mended(`${count}; changes since the copies were made are lost`, repaired);
}

/** Reports sessions that users cannot use, or that were last used in the future by this machine's clock. */
async function sessionsAreUsable({ parts: { store, directory } }: Context): Promise<Finding> {
  await directory.assertStorage(); // while the shared storage is missing, all histories look deleted
  const { servers } = await store.registry.read();
  const isHere = await directory.holds();
  const latest = Date.now() + CLOCK_TOLERANCE_MS;
  const stranded: { id: string; host: string }[] = [];
  const lost: string[] = [];
  const future: string[] = [];
  for (const record of await store.sessions.list()) {
    const { id, host = "", serverId, turns, lastUsedAt } = record;
    const home = servers[serverId]?.home;
    const isLost = () => home === undefined || readSessionFolder(home, id)?.hasHistory !== true;
    if (await directory.isStranded(record)) stranded.push({ id, host });
    else if (isHere(record) && turns > 0 && isLost()) lost.push(id);
    if (Date.parse(lastUsedAt) > latest) future.push(id);
  }
  const items = [
    ...stranded.map(({ id, host }) => `${id}: on the disk of host ${host}, which does not serve`),
    ...lost.map((id) => `${id}: its history is no longer on disk`),
  ];
  if (items.length > 0) {
    const fix: Suggestion =
      stranded.length > 0
        ? `copilotfleet serve  # on host ${stranded[0]?.host}`
        : "Restore the histories from a backup. Delete a session only to give its history up.";
    return failed(`sessions that cannot be used: ${items.length}`, fix, items);
  }
  if (future.length === 0) return ok("every recorded session can be used");
  const detail =
    "the clock of this machine was set back: these sessions were last used in the future, so gc keeps them too long";
  return warning(detail, CLOCK_ADVICE, future);
}

/**
 * Reports unfinished purges. A purge is finished when each host has erased its part, which a host does while it runs
 * `serve` or gc.
 */
async function purgesAreComplete({ parts }: Context): Promise<Finding> {
  const purges = await purgesUnderWay(parts.store);
  if (purges.length === 0) return ok("no erasure of a user's data is unfinished");
  const items = purges.map(({ user, begunAt, pending }) => {
    const hosts = pending.filter((host) => host !== null);
    return `${user}: begun ${begunAt}${hosts.length === 0 ? "" : `, not complete on ${hosts.join(", ")}`}`;
  });
  const detail = `users whose data is not erased completely: ${purges.length}; they can do nothing until it is`;
  return failed(detail, `copilotfleet user purge ${purges[0]?.user}`, items);
}

async function runningServers({ parts, fix }: Context): Promise<Finding> {
  const servers = Object.values((await parts.store.registry.read()).servers);
  const broken = servers.filter(isBroken);
  const notRunning = broken.map(({ id }) => `${id}: recorded as running, but not running`);
  if (broken.length > 0 && !fix) {
    return failed(`servers that do not run as recorded: ${broken.length}`, "copilotfleet ps", notRunning);
  }
  if (broken.length > 0) {
    await new ServerGroup(parts).list(); // repairs their records
    return mended("repaired the records of servers", notRunning);
  }
  const troubled = servers.filter(({ state }) => state === "failed" || state === "unhealthy");
  // Not a warning: the cost is small, and most causes remain after a restart.
  const late = servers.filter((server) => isRunning(server) && server.noDelay !== true);
  const lateItems = late.map(
    ({ id }) => `${id}: sends with Nagle's delay, so the fleet acknowledges each message at once`,
  );
  if (troubled.length === 0) return ok("every server is in its recorded state", lateItems);
  const items = troubled.map(({ id, state, failure }) => `${id}: ${state}${failure === null ? "" : `: ${failure}`}`);
  const detail = `servers that have failed or do not answer: ${troubled.length}; the next prompt starts a failed one again`;
  return warning(detail, `copilotfleet restart ${troubled.map(({ id }) => id).join(" ")}`, items);
}

/** Warns of running servers that would get a stronger sandbox now. A server gets its sandbox only when it starts. */
async function sandboxesAreCurrent({ parts: { store, config, env } }: Context): Promise<Finding> {
  const { servers } = await store.registry.read();
  const now = await sandboxNow(config, env);
  const weak = Object.values(servers)
    .filter(isRunning)
    .map(({ id, sandbox = NO_SANDBOX }) => ({ id, mode: sandbox.mode, lacks: lackingIn(sandbox, now) }))
    .filter(({ lacks }) => lacks.length > 0);
  if (weak.length === 0) return ok("no running server would get a stronger sandbox now");
  const items = weak.map(
    ({ id, mode, lacks }) => `${id}: sandbox ${mode}; a restart would also restrict ${lacks.join(", ")}`,
  );
  const detail = `running servers with a weaker sandbox than they would get now: ${weak.length}`;
  return warning(detail, `copilotfleet restart ${weak.map(({ id }) => id).join(" ")}`, items);
}

async function strayProcesses({ parts: { stateRoot, store }, fix }: Context): Promise<Finding> {
  const strays = await findStrays(stateRoot, async () => launchesOf(await store.registry.read()));
  if (strays.size === 0) return ok("none");
  if (fix) await endStrays(strays);
  const pids = [...strays.values()].flat().map(({ identity }) => identity.pid);
  const found = `processes of this fleet that are not in any record: pid ${pids.join(", ")}`;
  if (fix) return mended(`ended ${found}`);
  return failed(found, "Add --fix to end these processes.");
}

/** How many files to check. More would take long, and the first files usually show a mistake already. */
const MOST_FILES = 20_000;
/**
 * Agents write below these folders. The check does not enter them, because the fleet reads as little there as it can.
 */
const OF_AGENTS = new Set(["home", "session-state"]);

/** Checks that the files of the state belong to the fleet's account, and that no other account can read them. */
export const PERMISSIONS: Row = { name: "permissions", look: stateIsPrivate };

async function stateIsPrivate({ stateRoot, fix }: Context): Promise<Finding> {
  const root = await ifThereLater(async () => await lstat(stateRoot));
  if (root === null) return ok("nothing is stored so far");
  const foreign = await foreignFiles(stateRoot);
  if (foreign.length > 0) {
    const uid = process.getuid?.();
    const detail = `files of the state that belong to another user, perhaps because somebody ran a command with sudo: ${foreign.length}`;
    const [ofOwner] = adviceForOwner(stateRoot, root);
    // Never take the state from its owner.
    return failed(detail, root.uid === uid ? `sudo chown -R ${uid} ${shellQuote(stateRoot)}` : ofOwner, foreign);
  }
  // If only its owner may enter the state folder, nobody else can reach the files in it, whatever their modes.
  if ((root.mode & 0o077) === 0) return ok("only this account can read the state");
  const mode = (root.mode & 0o777).toString(8).padStart(4, "0");
  const open = `other users may read the state folder (mode ${mode}), which shows the ids of users and sessions`;
  if (!fix) return warning(open, `chmod go-rwx ${shellQuote(stateRoot)}`);
  await chmod(stateRoot, root.mode & 0o700);
  return mended(`${open}; it is private again`);
}

/** The paths of the state's files that belong to somebody else. */
async function foreignFiles(stateRoot: string): Promise<string[]> {
  const uid = process.getuid?.();
  const foreign: string[] = [];
  const folders = [stateRoot];
  let seen = 0;
  for (let folder = folders.pop(); folder !== undefined && seen < MOST_FILES; folder = folders.pop()) {
    const at = folder;
    for (const entry of (await ifThereLater(async () => await readdir(at, { withFileTypes: true }))) ?? []) {
      const path = join(at, entry.name);
      const stats = await ifThereLater(async () => await lstat(path)); // null: deleted since the listing
      seen += 1;
      if (stats === null) continue;
      if (stats.uid !== uid) foreign.push(path);
      else if (entry.isDirectory() && !OF_AGENTS.has(entry.name)) folders.push(path);
    }
  }
  return foreign;
}
