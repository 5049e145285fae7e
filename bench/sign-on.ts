/**
 * Measures how long the check of a JSON Web Token takes with cached keys, and how many users can sign on in a second:
 * with the check alone, and through a front door to a running server. No token is used twice. The front door and the
 * token issuer run in one process, and the clients in another.
 *
 * The limit for a check is a limit on wall time. On a machine that is busy with other work, the result also includes
 * the time for which the check waited for a processor.
 *
 * Run: npx tsx bench/sign-on.ts [checks] [connections]
 */
import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { systemClock } from "../src/base/clock.js";
import { loadConfig } from "../src/config/load/load.js";
import { SignOn } from "../src/identity/sign-on.js";
import { Fleet } from "../src/index.js";
import { openStore } from "../src/store/store.js";
import { Issuer } from "../test/fixtures/identity/issuer.js";
import { claim, printMachine } from "./measure.js";
import type { SignOns } from "./sign-on-clients.js";

const checks = Number(process.argv[2] ?? 5_000);
const connections = Number(process.argv[3] ?? 5_000);
const AT_ONCE = 16;
/** How many checks and sign-ons at the start do not count, because Node.js has not compiled their code by then. */
const WARM_UP = 1_000;

const folder = await mkdtemp(join(tmpdir(), "copilotfleet-sign-on-"));
const issuer = await Issuer.open();
const identity = { jwt: [{ issuer: issuer.url, audience: "copilotfleet" }] };
const provider = { type: "echo" as const };
const limits = { default: { connections: null } };
const env = { ...process.env, COPILOTFLEET_HOME: join(folder, "state") };
const options = { env, cwd: folder, config: { identity, provider, limits } };

async function tokensOf(alg: string, count: number): Promise<string[]> {
  await issuer.rotate(alg);
  const tokens: string[] = [];
  for (let at = 0; at < count; at++) tokens.push(await issuer.token({ jti: `t${at}` }, { alg }));
  return tokens;
}

/** Describes the processor time of this process since `since`, in milliseconds per item, for `count` items. */
function processorMs(since: NodeJS.CpuUsage, count: number): string {
  const { user, system } = process.cpuUsage(since);
  return `${((user + system) / 1000 / count).toFixed(3)} ms of processor time each`;
}

function p(times: readonly number[], share: number): number {
  return times.toSorted((a, b) => a - b)[Math.floor(times.length * share)] ?? Number.NaN;
}

async function measureChecks(alg: string): Promise<void> {
  const store = openStore("file", join(folder, "state"));
  const { config } = loadConfig({ env, cwd: folder, flags: options.config });
  const signOn = new SignOn({ store, config, clock: systemClock });
  const check = async (token: string) => {
    const start = performance.now();
    const found = await signOn.identify(token);
    if (!("user" in found)) throw new Error(JSON.stringify(found));
    return performance.now() - start;
  };
  const tokens = await tokensOf(alg, WARM_UP + 2 * checks);
  const first = await check(tokens.pop() ?? "");
  for (const token of tokens.splice(0, WARM_UP)) await check(token);
  const times: number[] = [];
  for (const token of tokens.splice(0, checks)) times.push(await check(token));
  const before = process.cpuUsage();
  const start = performance.now();
  const waiting = tokens.values();
  const worker = async () => {
    for (const token of waiting) await check(token);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  const ms = (performance.now() - start) / tokens.length;
  const cost = processorMs(before, tokens.length);
  const [half, most, last] = [p(times, 0.5), p(times, 0.99), p(times, 0.999)].map((time) => time.toFixed(3));
  console.log(
    `${alg.padEnd(6)} check: median ${half} ms, p99 ${most} ms, p99.9 ${last} ms; the first one, which gets the keys: ${first.toFixed(1)} ms; ` +
      `${AT_ONCE} at once: ${(1000 / ms).toFixed(0)} a second, ${cost}`,
  );
  claim(`p99 of a check with ${alg} to 1 ms`, p(times, 0.99), 1);
  claim(`1,000 checks a second to those with ${alg}`, ms, 1);
  await store.close();
}

async function measureDoor(): Promise<void> {
  const tokens = await tokensOf("ES256", WARM_UP + connections);
  await using fleet = await Fleet.open(options);
  const door = await fleet.doors.open({ listen: { host: "127.0.0.1", port: 0 } });
  const clients = fork(fileURLToPath(new URL("./sign-on-clients.ts", import.meta.url)));
  const signOnAll = async (part: readonly string[]): Promise<number> => {
    clients.send({ port: door.address.port, tokens: part } satisfies SignOns);
    const failed = once(clients, "exit").then(() => Promise.reject(new Error("the clients failed")));
    const [ms] = (await Promise.race([once(clients, "message"), failed])) as [number];
    return ms / part.length;
  };
  await signOnAll(tokens.splice(0, WARM_UP));
  const before = process.cpuUsage();
  const ms = await signOnAll(tokens);
  console.log(
    `through a front door, each with a connection to the user's server: ${(1000 / ms).toFixed(0)} sign-ons a second, ${processorMs(before, connections)}`,
  );
  claim("1,000 sign-ons a second to those through the front door", ms, 1);
  clients.removeAllListeners("exit").disconnect();
  await door.close();
  await fleet.servers.stop(
    (await fleet.servers.list()).map(({ id }) => id),
    { force: true },
  );
}

try {
  printMachine();
  console.log(`load: ${loadavg()[0]?.toFixed(1)}`);
  for (const alg of ["RS256", "ES256", "EdDSA"]) await measureChecks(alg);
  await measureDoor();
} finally {
  await issuer[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
}
