import { type Suggestion, systemCode } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import { countOf, shellQuote } from "../../base/values/text.js";
import type { TokenView } from "../../identity/tokens.js";
import { connectProblem } from "../../runtime/launch/launch.js";
import { showAddress } from "../../runtime/launch/listen.js";
import { ownVersion } from "../../runtime/launch/versions.js";
import { hasOpenStore, OPEN_STORE } from "../../servers/admission.js";
import { ADDRESS } from "../../servers/start.js";
import { isBindable } from "../../servers/surroundings.js";
import type { SupervisorView } from "../groups/servers.js";
import { CLOCK_ADVICE, type Finding, failed, ok, type Row, skipped, warning } from "./checks.js";
import type { RecordsContext } from "./storage.js";

/** The check warns if fewer ports than this are free. In a small range, it warns only below a tenth of the range. */
const FEW_PORTS = 10;
/**
 * A store is slow if one small operation takes longer than this, in milliseconds. Each change of the state needs
 * several such operations.
 */
const SLOW_STORE_MS = { file: 500, redis: 50 };
/**
 * Tokens and leases expire by the store's clock, and sessions by this machine's. A difference below this, in
 * milliseconds, does not matter.
 */
const CLOCK_DIFFERENCE_MS = 5_000;
const ANSWER_MS = 2_000;
/** The check warns of a token that nobody has used for longer than this, in milliseconds. */
const UNUSED_MS = 90 * 24 * 3_600_000;

/** Checks that the store answers. All checks of the state in the store depend on this one. */
export const STORE: Row<RecordsContext> = { name: "store", look: storeAnswers };

/** The checks of the running fleet: its supervisor, addresses, tokens, limits and ports. */
export const OPERATION: readonly Row<RecordsContext>[] = [
  { name: "pool", look: poolAdmits },
  { name: "serve", look: supervision },
  { name: "events", look: eventLog },
  { name: "front door", look: frontDoor, isSlow: true },
  { name: "HTTP API", look: httpApi, isSlow: true },
  { name: "tokens", look: tokens },
  { name: "usage", look: usage },
  { name: "user limits", look: userLimits },
  { name: "ports", look: freePorts },
];

/** The check of all hosts, in a fleet with several hosts. */
export const HOSTS: Row<RecordsContext> = { name: "hosts", look: hosts };

async function storeAnswers({ fleet }: RecordsContext): Promise<Finding> {
  const { kind } = fleet.config.store;
  const { durationMs, clockAheadMs } = await fleet.records.probeStore();
  const isOpen = hasOpenStore(fleet.config);
  const items = [...fleet.takeWarnings(), ...(isOpen ? [`${OPEN_STORE}.`] : [])];
  const what = kind === "file" ? "a write takes" : "an answer takes";
  const detail = `${kind}: ${durationMs === null ? "nothing is stored so far" : `${what} ${durationMs.toFixed(1)} ms`}`;
  if (Math.abs(clockAheadMs) > CLOCK_DIFFERENCE_MS) {
    const seconds = Math.round(Math.abs(clockAheadMs) / 1000);
    const clock = `its clock is ${seconds} s ${clockAheadMs > 0 ? "ahead of" : "behind"} this machine's`;
    return {
      ...warning(`${detail}; ${clock}, so tokens and sessions expire at wrong times`, CLOCK_ADVICE),
      items,
    };
  }
  if (durationMs !== null && durationMs > SLOW_STORE_MS[kind]) {
    const fix: Suggestion = kind === "file" ? `df -h ${shellQuote(fleet.stateRoot)}` : "redis-cli -u URL --latency";
    return { ...warning(`${detail}, which makes every command slow`, fix), items };
  }
  if (items.length === 0) return ok(detail);
  const fix = isOpen ? "Set requirepass in Redis, and put the password into the URL in store." : undefined;
  return { ...warning(`${detail}; it is not as safe as it should be`, fix), items };
}

async function poolAdmits({ fleet }: RecordsContext): Promise<Finding> {
  const { state, reason, drainedAt } = await fleet.pool.state();
  if (state === "open") return ok("open");
  const fix = drainedAt === null ? undefined : "copilotfleet drain --undo";
  return warning(`${reason}: it takes no new servers or turns`, fix);
}

/** Checks that `serve` runs, has the version of this command, and reports that it is healthy and ready. */
async function supervision({ fleet, quick }: RecordsContext): Promise<Finding> {
  const supervisor = await fleet.pool.supervisor();
  if (supervisor === null) {
    const detail = "not running: nothing restarts crashed servers, deletes expired sessions or opens the front door";
    return warning(detail, "copilotfleet serve");
  }
  const { pid, version } = supervisor;
  const running = `running as process ${pid}`;
  const problem = quick ? null : await problemOf(supervisor);
  if (problem !== null) return { ...problem, detail: `${running}; ${problem.detail}` };
  if (version === ownVersion()) return ok(`${running}, version ${version}`);
  const fix = "Restart serve, so that it has the version of this command.";
  return warning(`${running}, version ${version ?? "unknown"}; this command is version ${ownVersion()}`, fix);
}

async function problemOf({ metrics, pid }: SupervisorView): Promise<Finding | null> {
  if (metrics === null) return null; // still starting
  for (const [path, level] of [
    ["healthz", failed],
    ["readyz", warning],
  ] as const) {
    const url = `http://${metrics}/${path}`;
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(ANSWER_MS) });
      const { reasons = [] } = (await response.json()) as { reasons?: string[] };
      if (!response.ok) return { ...level(`/${path} answers ${response.status}`, `curl ${url}`), items: reasons };
    } catch (error) {
      const isLate = error instanceof Error && error.name === "TimeoutError";
      const code = systemCode(error instanceof Error ? error.cause : undefined);
      const why = isLate ? `within ${ANSWER_MS / 1000} s` : `(${code ?? String(error)})`;
      const fix: Suggestion = `kill -KILL ${pid}  # then start serve again, unless systemd or an orchestrator does`;
      return failed(`it does not answer at ${url} ${why}`, fix);
    }
  }
  return null;
}

/**
 * Warns of users who have more sessions than their limit allows, which happens when somebody lowers the limit. The
 * other limits need no check: turns and connections end, and tokens count only for a day or a month.
 */
async function userLimits({ fleet }: RecordsContext): Promise<Finding> {
  const { users, exceeded } = await fleet.records.userLimits();
  const [first] = exceeded;
  if (first === undefined) return ok(`users with limits of their own, or with groups: ${users}`);
  const items = exceeded.map(({ user, used, max }) => `${user}: ${used} sessions, and the limit is ${max}`);
  const detail = `users who have more sessions than they may have, and can create none: ${exceeded.length}`;
  return { ...warning(detail, `copilotfleet list --user ${shellQuote(first.user)}`), items };
}

async function frontDoor({ fleet }: RecordsContext): Promise<Finding> {
  const supervisor = await fleet.pool.supervisor();
  if (supervisor === null) return skipped("serve is not running");
  const { door } = supervisor;
  if (door === null) return ok("none");
  const problem = await problemAt(door);
  if (problem === null) return ok(`${door} accepts connections`);
  return failed(`${door} accepts no connections: ${problem}`, `ss -ltnp 'sport = :${portOf(door)}'`);
}

/**
 * Checks that the HTTP API accepts connections. Also compares the running `serve` with the configuration, because
 * `serve` does not notice that `serve.http` was set after its start.
 */
async function httpApi({ fleet }: RecordsContext): Promise<Finding> {
  const wanted = fleet.config.serve.http;
  const supervisor = await fleet.pool.supervisor();
  if (supervisor === null) return wanted === null ? ok("off") : skipped("serve is not running");
  const { http } = supervisor;
  if (http === null) {
    if (wanted === null) return ok("off");
    const problem = `serve.http is "${showAddress(wanted)}", but the running serve has not opened it`;
    return warning(problem, "Restart serve, so that it opens the HTTP API.");
  }
  const address = http.replace(/^https?:\/\//, "");
  const problem = await problemAt(address);
  if (problem === null) return (await consoleProblem()) ?? ok(`${http} accepts connections`);
  return failed(`${http} accepts no connections: ${problem}`, `ss -ltnp 'sport = :${portOf(address)}'`);
}

/**
 * Reports missing files of the console. They are missing if an installation was interrupted, or if the package was made
 * without a build.
 */
async function consoleProblem(): Promise<Finding | null> {
  const { missingFiles } = await import("../../http/console.js");
  const missing = await missingFiles();
  if (missing.length === 0) return null;
  return failed(`the console has no ${missing.join(", ")}`, "Install copilotfleet again, and restart serve.");
}

async function problemAt(address: string): Promise<string | null> {
  const host = address.slice(0, address.lastIndexOf(":")).replace(/^\[|\]$/g, "");
  return await connectProblem({ host, port: portOf(address) }, ANSWER_MS);
}

function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(":") + 1));
}

/**
 * Checks that the ledger can be read. With a Redis store, first sends the ledger lines that still wait on this host to
 * Redis.
 */
async function usage({ fleet }: RecordsContext): Promise<Finding> {
  const { total } = await fleet.usage.report();
  return ok(`in 24 hours: ${countOf(total.turns, "turn")}, ${countOf(total.requests, "model request")}`);
}

/**
 * Warns of expired tokens, of tokens that nobody has used for a long time, and of tokens that never expire, because a
 * thief could use them forever.
 */
async function tokens({ fleet, fix }: RecordsContext): Promise<Finding> {
  const all = await fleet.tokens.list();
  const expired = all.filter((token) => token.expired);
  const endless = all.filter(({ expiresAt }) => expiresAt === null);
  const since = ({ lastUsedAt, createdAt }: TokenView) => lastUsedAt ?? createdAt;
  const unused = all.filter((token) => !token.expired && Date.now() - Date.parse(since(token)) > UNUSED_MS);
  const items = [
    ...expired.map(({ id, user, expiresAt }) => `${id} of ${user}: expired at ${expiresAt}`),
    ...endless.map(({ id, user, createdAt }) => `${id} of ${user}: issued at ${createdAt}, never expires`),
    ...unused.map((token) => `${token.id} of ${token.user}: unused since ${since(token)}`),
  ];
  if (fix) await fleet.tokens.revoke({ ids: expired.map(({ id }) => id) }, { ignoreNotFound: true });
  const left = [...(fix ? [] : expired), ...endless, ...unused];
  const idle = unused.length === 0 ? "" : `, unused for 90 days: ${unused.length}`;
  const counts = `issued: ${all.length}, expired: ${expired.length}, without an end: ${endless.length}${idle}`;
  if (left.length === 0) {
    if (expired.length === 0) return ok(`issued: ${all.length}`);
    return { level: "ok", detail: `issued: ${all.length}; deleted the expired ones`, items, fixed: true };
  }
  const done = fix && expired.length > 0 ? "; deleted the expired ones" : "";
  const advice: Suggestion =
    unused[0] !== undefined
      ? `copilotfleet token revoke ${unused[0].id}`
      : endless[0] === undefined
        ? "Add --fix to delete the expired tokens."
        : `copilotfleet token issue --user ${endless[0].user} --ttl 90d  # then give it to the client, and revoke the old one`;
  return { ...warning(`${counts}${done}`, advice), items, fixed: done !== "" };
}

/**
 * Checks that enough ports are free. Stops when it has found enough, because a range may have tens of thousands of
 * ports.
 */
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

/** Checks that every host serves, has the version of this command, and accepts connections. */
async function hosts({ fleet, quick }: RecordsContext): Promise<Finding> {
  const all = await fleet.hosts.list();
  const found = await Promise.all(all.map(async (host) => await troubleOf(host, quick)));
  const items = found.filter((trouble) => trouble !== null);
  const names = all.map(({ name }) => name).join(", ");
  if (items.length === 0) return ok(all.length === 0 ? "no host has served so far" : `all serve: ${names}`);
  return {
    ...warning(`hosts that need attention: ${items.length} of ${all.length}`, "copilotfleet top --once"),
    items,
  };
}

async function troubleOf({ name, gone, state, door, version }: HostRecord, quick: boolean): Promise<string | null> {
  if (gone) return `${name}: does not serve`;
  if (state === "draining") return `${name}: drains, and takes no more users`;
  if (door === null) return `${name}: has no front door, so other hosts cannot reach it`;
  const problem = quick ? null : await problemAt(door);
  if (problem !== null) return `${name}: its front door ${door} cannot be reached: ${problem}`;
  if (version === undefined || version === ownVersion()) return null;
  return `${name}: runs version ${version}, and this command is version ${ownVersion()}`;
}

async function eventLog({ fleet }: RecordsContext): Promise<Finding> {
  const { verifyLog } = await import("../../accounts/audit/verify.js");
  const { events, brokenAt } = await verifyLog(fleet.stateRoot);
  if (brokenAt === null) return ok(`events in the log: ${events}`);
  return failed(`the audit log is not as it was written: ${brokenAt.problem}`, "copilotfleet events verify");
}
