import { asSentence, countOf } from "../../config/values/text.js";
import { type FleetError, isFleetError, type Suggestion } from "../../errors.js";
import { endStrays, findStrays } from "../../sessions/gc/broken-servers.js";
import { DAMAGE_ADVICE } from "../../store/file/commit/damage.js";
import type { Fleet } from "../fleet.js";
import { CLOCK_ADVICE, type Finding, failed, ok, type Row, warning } from "./checks.js";

export interface RecordsContext {
  fleet: Fleet;
  fix: boolean;
  /** Do not use the network, except for the store. */
  quick: boolean;
}

/** The check that all other checks of the recorded state depend on. */
export const REGISTRY: Row<RecordsContext> = {
  name: "registry",
  look: async ({ fleet, fix }) => {
    try {
      return ok(`servers recorded: ${await fleet.records.servers()}`);
    } catch (error) {
      if (!isFleetError(error, "FLEET_STATE_CORRUPT")) throw error;
      return await rebuilt(error, { fleet, fix });
    }
  },
};

/** Rebuilds a registry of which neither a revision nor the copy is readable. Without `fix`, only advises it. */
async function rebuilt(error: FleetError, { fleet, fix }: Pick<RecordsContext, "fleet" | "fix">): Promise<Finding> {
  const found = fix ? await fleet.records.rebuildRegistry() : null;
  if (found === null)
    throw error.reworded(({ suggestions }) => ({
      suggestions: fix ? suggestions : ["Add --fix to rebuild it from the folders and processes of the servers."],
    }));
  const { servers, unknown } = found;
  const lost = "The working folders of servers (--cwd) are not known any more, and the pool is open";
  return {
    level: "ok",
    detail: `${asSentence(error.message)} Rebuilt it from the folders and processes of ${countOf(servers.length, "server")}. ${lost}`,
    items: unknown.map((id) => `${id}: left out, because its user is not known; it is back when that user needs it`),
    fixed: true,
  };
}

export const RECORDS: readonly Row<RecordsContext>[] = [
  { name: "session records", look: async ({ fleet }) => ok(`sessions recorded: ${await fleet.records.sessions()}`) },
  { name: "damage", look: damage },
  { name: "sessions", look: sessionsAreUsable },
  { name: "purges", look: purgesAreComplete },
  { name: "servers", look: runningServers },
  { name: "sandboxes", look: sandboxesAreCurrent },
  { name: "stray processes", look: strayProcesses },
];

/** Reports damaged records that the fleet replaced with older revisions, each with the changes that were lost. */
async function damage({ fleet, fix }: RecordsContext): Promise<Finding> {
  await fleet.tokens.list();
  await fleet.records.readRest();
  const texts = fleet.takeWarnings();
  const items = texts.filter(isDamage).map((text) => text.replace(DAMAGE_ADVICE, "").trim());
  const others = texts.filter((text) => !isDamage(text));
  if (items.length === 0) {
    return others.length === 0 ? ok("none") : { ...warning("none; but the store reports a problem"), items: others };
  }
  const count = `damaged records: ${items.length}`;
  if (!fix) {
    const advice = "Check the disk. Add --fix to write the records again; the damaged files are kept as corrupt-*.";
    return { ...warning(`${count}; the fleet uses older revisions or copies`, advice), items };
  }
  await fleet.records.repairRegistry();
  await fleet.records.repairSessions();
  return {
    level: "ok",
    detail: `${count}, written again; the damaged files are kept as corrupt-*`,
    items,
    fixed: true,
  };
}

function isDamage(warning: string): boolean {
  return warning.endsWith(DAMAGE_ADVICE);
}

async function sessionsAreUsable({ fleet }: RecordsContext): Promise<Finding> {
  const { lost, stranded, future } = await fleet.records.sessionTroubles();
  const items = [
    ...stranded.map(({ id, host }) => `${id}: on the disk of host ${host}, which does not serve`),
    ...lost.map((id) => `${id}: its history is no longer on disk`),
  ];
  if (items.length > 0) {
    const fix: Suggestion =
      stranded.length > 0
        ? `copilotfleet serve  # on host ${stranded[0]?.host}`
        : "Restore the histories from a backup. Delete a session only to give its history up.";
    return { ...failed(`sessions that cannot be used: ${items.length}`, fix), items };
  }
  if (future.length === 0) return ok("every recorded session can be used");
  const detail =
    "the clock of this machine was set back: these sessions were last used in the future, so gc keeps them too long";
  return { ...warning(detail, CLOCK_ADVICE), items: future };
}

/**
 * Reports unfinished purges. A purge is finished when each host has erased its part, which a host does while it runs
 * `serve` or gc.
 */
async function purgesAreComplete({ fleet }: RecordsContext): Promise<Finding> {
  const purges = await fleet.records.purges();
  if (purges.length === 0) return ok("no erasure of a user's data is unfinished");
  const items = purges.map(({ user, begunAt, pending }) => {
    const hosts = pending.filter((host) => host !== null);
    return `${user}: begun ${begunAt}${hosts.length === 0 ? "" : `, not complete on ${hosts.join(", ")}`}`;
  });
  const detail = `users whose data is not erased completely: ${purges.length}; they can do nothing until it is`;
  return { ...failed(detail, `copilotfleet user purge ${purges[0]?.user}`), items };
}

async function runningServers({ fleet, fix }: RecordsContext): Promise<Finding> {
  const broken = await fleet.records.brokenServers();
  const notRunning = broken.map((id) => `${id}: recorded as running, but not running`);
  if (broken.length > 0 && !fix) {
    return { ...failed(`servers that do not run as recorded: ${broken.length}`, "copilotfleet ps"), items: notRunning };
  }
  if (broken.length > 0) {
    await fleet.servers.list(); // repairs their records
    return { level: "ok", detail: "repaired the records of servers", items: notRunning, fixed: true };
  }
  const troubled = await fleet.records.troubledServers();
  if (troubled.length === 0) return ok("every server is in its recorded state");
  const items = troubled.map(({ id, state, failure }) => `${id}: ${state}${failure === null ? "" : `: ${failure}`}`);
  const detail = `servers that have failed or do not answer: ${troubled.length}; the next prompt starts a failed one again`;
  return { ...warning(detail, `copilotfleet restart ${troubled.map(({ id }) => id).join(" ")}`), items };
}

/** Warns of running servers that would get a stronger sandbox now. A server gets its sandbox only when it starts. */
async function sandboxesAreCurrent({ fleet }: RecordsContext): Promise<Finding> {
  const weak = await fleet.records.weakServers();
  if (weak.length === 0) return ok("no running server would get a stronger sandbox now");
  const items = weak.map(
    ({ id, mode, lacks }) => `${id}: sandbox ${mode}; a restart would also restrict ${lacks.join(", ")}`,
  );
  const detail = `running servers with a weaker sandbox than they would get now: ${weak.length}`;
  return { ...warning(detail, `copilotfleet restart ${weak.map(({ id }) => id).join(" ")}`), items };
}

async function strayProcesses({ fleet, fix }: RecordsContext): Promise<Finding> {
  const strays = await findStrays(fleet.stateRoot, () => fleet.records.launchIds());
  if (strays.size === 0) return ok("none");
  if (fix) await endStrays(strays);
  const pids = [...strays.values()].flat().map(({ identity }) => identity.pid);
  const found = `processes of this fleet that are not in any record: pid ${pids.join(", ")}`;
  if (fix) return { level: "ok", detail: `ended ${found}`, fixed: true };
  return failed(found, "Add --fix to end these processes.");
}
