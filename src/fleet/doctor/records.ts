import { isBindable } from "../../pool/start/ports.js";
import { ADDRESS } from "../../pool/start/start.js";
import { endStrays, findStrays } from "../../sessions/gc/broken-servers.js";
import { DAMAGE_ADVICE } from "../../store/file/commit/damage.js";
import type { Fleet } from "../fleet.js";
import { type Finding, ok, type Row, warning } from "./checks.js";

export interface RecordsContext {
  fleet: Fleet;
  fix: boolean;
}

/** The check warns if fewer ports than this are free, or in a small range, fewer than a tenth of the range. */
const FEW_PORTS = 10;

/** The check that all other checks of the recorded state depend on. */
export const REGISTRY: Row<RecordsContext> = {
  name: "registry",
  look: async ({ fleet, fix }) => {
    const count = await fleet.records.servers();
    return await recorded(`${count} servers recorded`, fleet, fix, () => fleet.records.repairRegistry());
  },
};

export const RECORDS: readonly Row<RecordsContext>[] = [
  {
    name: "session records",
    look: async ({ fleet, fix }) => {
      const count = await fleet.records.sessions();
      return await recorded(`${count} sessions recorded`, fleet, fix, () => fleet.records.repairSessions());
    },
  },
  { name: "servers", look: runningServers },
  { name: "pool", look: poolAdmits },
  { name: "serve", look: supervision },
  { name: "ports", look: freePorts },
  { name: "stray processes", look: strayProcesses },
];

/** Adds the store's warnings to the count of one kind of record. With `fix`, repairs damaged records. */
async function recorded(count: string, fleet: Fleet, fix: boolean, repair: () => Promise<void>): Promise<Finding> {
  const warnings = fleet.takeWarnings();
  if (warnings.length === 0) return ok(count);
  const isDamaged = warnings.some((text) => text.endsWith(DAMAGE_ADVICE));
  const fixed = fix && isDamaged;
  if (fixed) await repair();
  const texts = warnings.map((text) => text.replace(DAMAGE_ADVICE, "").trim());
  const advice = "Check the disk. Add --fix to write the records again; the damaged files are kept as corrupt-*.";
  const detail = `${count}; ${texts.join(" ")}`;
  return { level: fixed ? "ok" : "warning", detail, fix: isDamaged ? advice : undefined, fixed };
}

async function runningServers({ fleet, fix }: RecordsContext): Promise<Finding> {
  const broken = await fleet.records.brokenServers();
  if (broken.length === 0) return ok("every server is in its recorded state");
  if (fix) await fleet.servers.list();
  const detail = `${broken.join(", ")}: recorded as running, but not running`;
  return { level: fix ? "ok" : "failed", detail, fix: "copilotfleet ps", fixed: fix };
}

async function poolAdmits({ fleet }: RecordsContext): Promise<Finding> {
  const { state, reason, drainedAt } = await fleet.pool.state();
  if (state === "open") return ok("open");
  const fix = drainedAt === null ? undefined : "copilotfleet drain --undo";
  return warning(`${reason}: it takes no new servers or turns`, fix);
}

async function supervision({ fleet }: RecordsContext): Promise<Finding> {
  const pid = await fleet.pool.supervisorPid();
  if (pid !== null) return ok(`running as process ${pid}`);
  const detail = "not running: nothing restarts crashed servers, deletes expired sessions or opens the front door";
  return warning(detail, "copilotfleet serve");
}

/** Tries ports only until enough free ones are found, because a range may have tens of thousands. */
async function freePorts({ fleet }: RecordsContext): Promise<Finding> {
  const { from, to } = fleet.config.ports;
  const held = await fleet.records.heldPorts();
  const size = to - from + 1;
  const enough = Math.min(FEW_PORTS, Math.ceil(size / 10));
  let free = 0;
  let foreign = 0;
  for (let port = from; port <= to && free < enough; port++) {
    if (held.has(port)) continue;
    if (await isBindable(ADDRESS, port)) free++;
    else foreign++;
  }
  const own = [...held].filter((port) => port >= from && port <= to).length;
  if (free >= enough) return ok(`${own} of the ${size} ports from ${from} to ${to} are used by servers`);
  const count = free === 0 ? "none" : `only ${free}`;
  const used = `${own} are used by servers, ${foreign} by other programs`;
  return warning(
    `${count} of the ${size} ports from ${from} to ${to} ${free === 1 ? "is" : "are"} free; ${used}`,
    "Widen ports.from and ports.to in the configuration.",
  );
}

async function strayProcesses({ fleet, fix }: RecordsContext): Promise<Finding> {
  const strays = await findStrays(fleet.stateRoot, () => fleet.records.launchIds());
  if (strays.size === 0) return ok("none");
  if (fix) await endStrays(strays);
  const pids = [...strays.values()].flat().map(({ identity }) => identity.pid);
  const detail = `processes of this fleet that are not in any record: pid ${pids.join(", ")}`;
  return { level: fix ? "ok" : "failed", detail, fix: "Add --fix to end these processes.", fixed: fix };
}
