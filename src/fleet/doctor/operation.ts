import { type Suggestion, systemCode } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import type { SupervisorRecord } from "../../base/server.js";
import { shellQuote } from "../../base/values/text.js";
import { parseAddress } from "../../config/rules.js";
import { listTokens, type TokenView } from "../../identity/tokens.js";
import { connectProblem } from "../../runtime/launch/launch.js";
import { showAddress } from "../../runtime/launch/listen.js";
import { ownVersion } from "../../runtime/launch/versions.js";
import { hasOpenStore, liveSupervisor, OPEN_STORE, poolState } from "../../servers/admission.js";
import { ADDRESS } from "../../servers/start.js";
import { heldPorts, isBindable } from "../../servers/surroundings.js";
import { TokenGroup } from "../groups/tokens.js";
import { CLOCK_ADVICE, type Context, type Finding, failed, mended, ok, type Row, warning } from "./checks.js";

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
export const STORE: Row = { name: "store", look: storeAnswers };

/** The checks of the running fleet. */
export const OPERATION: readonly Row[] = [
  { name: "pool", look: poolAdmits },
  { name: "serve", look: supervision },
  { name: "events", look: eventLog },
  { name: "tokens", look: tokens },
  { name: "ports", look: freePorts },
];

/** The check of all hosts, in a fleet with several hosts. */
export const HOSTS: Row = { name: "hosts", look: hosts };

async function storeAnswers({ parts }: Context): Promise<Finding> {
  const { store, config, stateRoot } = parts;
  const { kind } = config.store;
  const { durationMs, clockAheadMs } = await store.probe();
  const isOpen = hasOpenStore(config);
  const items = [...parts.takeWarnings(), ...(isOpen ? [`${OPEN_STORE}.`] : [])];
  const what = kind === "file" ? "a write takes" : "an answer takes";
  const detail = `${kind}: ${durationMs === null ? "nothing is stored so far" : `${what} ${durationMs.toFixed(1)} ms`}`;
  if (Math.abs(clockAheadMs) > CLOCK_DIFFERENCE_MS) {
    const seconds = Math.round(Math.abs(clockAheadMs) / 1000);
    const clock = `its clock is ${seconds} s ${clockAheadMs > 0 ? "ahead of" : "behind"} this machine's`;
    return warning(`${detail}; ${clock}, so tokens and sessions expire at wrong times`, CLOCK_ADVICE, items);
  }
  if (durationMs !== null && durationMs > SLOW_STORE_MS[kind]) {
    const fix: Suggestion = kind === "file" ? `df -h ${shellQuote(stateRoot)}` : "redis-cli -u URL --latency";
    return warning(`${detail}, which makes every command slow`, fix, items);
  }
  if (items.length === 0) return ok(detail);
  const fix = isOpen ? "Set requirepass in Redis, and put the password into the URL in store." : undefined;
  return warning(`${detail}; it is not as safe as it should be`, fix, items);
}

async function poolAdmits({ parts }: Context): Promise<Finding> {
  const { state, reason, drainedAt } = poolState(await parts.store.registry.read());
  if (state === "open") return ok("open");
  const fix = drainedAt === null ? undefined : "copilotfleet drain --undo";
  return warning(`${reason}: it takes no new servers or turns`, fix);
}

/**
 * Checks that `serve` runs, has the version of this command, and reports that it is healthy and ready. `serve` does not
 * notice that `serve.http` was set after its start.
 */
async function supervision({ parts, quick }: Context): Promise<Finding> {
  const supervisor = liveSupervisor(await parts.store.registry.read());
  if (supervisor === undefined) {
    const detail = "not running: nothing restarts crashed servers, deletes expired sessions or opens the front door";
    return warning(detail, "copilotfleet serve");
  }
  const { version } = supervisor;
  const { pid } = supervisor.process;
  const wanted = parts.config.serve.http;
  const running = `running as process ${pid}`;
  const problem = quick ? null : await problemOf(supervisor);
  if (problem !== null) return { ...problem, detail: `${running}; ${problem.detail}` };
  if (wanted !== null && supervisor.http == null) {
    const detail = `${running}; serve.http is "${showAddress(wanted)}", but serve has not opened it`;
    return warning(detail, "Restart serve, so that it opens the HTTP API.");
  }
  if (version === ownVersion()) return ok(`${running}, version ${version}`);
  const fix = "Restart serve, so that it has the version of this command.";
  return warning(`${running}, version ${version ?? "unknown"}; this command is version ${ownVersion()}`, fix);
}

async function problemOf({ metrics, process: { pid } }: SupervisorRecord): Promise<Finding | null> {
  if (metrics === null) return null; // still starting
  for (const [path, level] of [
    ["healthz", failed],
    ["readyz", warning],
  ] as const) {
    const url = `http://${metrics}/${path}`;
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(ANSWER_MS) });
      const { reasons = [] } = (await response.json()) as { reasons?: string[] };
      if (!response.ok) return level(`/${path} answers ${response.status}`, `curl ${url}`, reasons);
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
 * Warns of expired tokens, of tokens that nobody has used for a long time, and of tokens that never expire, because a
 * thief could use them forever.
 */
async function tokens({ parts, fix }: Context): Promise<Finding> {
  const all = await listTokens(parts.store);
  const expired = all.filter((token) => token.expired);
  const endless = all.filter(({ expiresAt }) => expiresAt === null);
  const since = ({ lastUsedAt, createdAt }: TokenView) => lastUsedAt ?? createdAt;
  const unused = all.filter((token) => !token.expired && Date.now() - Date.parse(since(token)) > UNUSED_MS);
  const items = [
    ...expired.map(({ id, user, expiresAt }) => `${id} of ${user}: expired at ${expiresAt}`),
    ...endless.map(({ id, user, createdAt }) => `${id} of ${user}: issued at ${createdAt}, never expires`),
    ...unused.map((token) => `${token.id} of ${token.user}: unused since ${since(token)}`),
  ];
  if (fix) await new TokenGroup(parts).revoke({ ids: expired.map(({ id }) => id) }, { ignoreNotFound: true });
  const left = [...(fix ? [] : expired), ...endless, ...unused];
  const idle = unused.length === 0 ? "" : `, unused for 90 days: ${unused.length}`;
  const counts = `issued: ${all.length}, expired: ${expired.length}, without an end: ${endless.length}${idle}`;
  if (left.length === 0) {
    if (expired.length === 0) return ok(`issued: ${all.length}`);
    return mended(`issued: ${all.length}; deleted the expired ones`, items);
  }
  const done = fix && expired.length > 0 ? "; deleted the expired ones" : "";
  const advice: Suggestion =
    unused[0] !== undefined
      ? `copilotfleet token revoke ${unused[0].id}`
      : endless[0] === undefined
        ? "Add --fix to delete the expired tokens."
        : `copilotfleet token issue --user ${endless[0].user} --ttl 90d  # then give it to the client, and revoke the old one`;
  return { ...warning(`${counts}${done}`, advice, items), fixed: done !== "" };
}

/**
 * Checks that enough ports are free. Stops when it has found enough, because a range may have tens of thousands of
 * ports.
 */
async function freePorts({ parts }: Context): Promise<Finding> {
  const { from, to } = parts.config.ports;
  const held = heldPorts(await parts.store.registry.read());
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
async function hosts({ parts, quick }: Context): Promise<Finding> {
  const all = await parts.directory.list();
  const found = await Promise.all(all.map(async (host) => await troubleOf(host, quick)));
  const items = found.filter((trouble) => trouble !== null);
  const names = all.map(({ name }) => name).join(", ");
  if (items.length === 0) return ok(all.length === 0 ? "no host has served so far" : `all serve: ${names}`);
  return warning(`hosts that need attention: ${items.length} of ${all.length}`, "copilotfleet top --once", items);
}

async function troubleOf({ name, gone, state, door, version }: HostRecord, quick: boolean): Promise<string | null> {
  if (gone) return `${name}: does not serve`;
  if (state === "draining") return `${name}: drains, and takes no more users`;
  if (door === null) return `${name}: has no front door, so other hosts cannot reach it`;
  const address = parseAddress(door);
  const problem = quick || address === null ? null : await connectProblem(address, ANSWER_MS);
  if (problem !== null) return `${name}: its front door ${door} cannot be reached: ${problem}`;
  if (version === undefined || version === ownVersion()) return null;
  return `${name}: runs version ${version}, and this command is version ${ownVersion()}`;
}

async function eventLog({ parts }: Context): Promise<Finding> {
  const { verifyLog } = await import("../../accounts/audit/verify.js");
  const { events, brokenAt } = await verifyLog(parts.stateRoot);
  if (brokenAt === null) return ok(`events in the log: ${events}`);
  return failed(`the audit log is not as it was written: ${brokenAt.problem}`, "copilotfleet events verify");
}
