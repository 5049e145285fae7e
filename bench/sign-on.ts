/**
 * How long the check of a JSON Web Token takes with cached keys, and how many users can sign on in a second: with the check
 * alone, and through an open front door with a running server. Client, issuer and door are one process here.
 *
 * Run: npx tsx bench/sign-on.ts [checks] [connections]
 */
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadConfig } from "../src/config/load/load.js";
import { SignOn } from "../src/identity/sign-on.js";
import { Fleet } from "../src/index.js";
import { systemClock } from "../src/runtime/clock.js";
import { openFileStore } from "../src/store/file/file-store.js";
import { Issuer } from "../test/fixtures/identity/issuer.js";
import { claim } from "./measure.js";

const checks = Number(process.argv[2] ?? 5_000);
const connections = Number(process.argv[3] ?? 2_000);
const AT_ONCE = 16;
const TOKENS = 200;

const folder = await mkdtemp(join(tmpdir(), "copilotfleet-sign-on-"));
const issuer = await Issuer.open();
const identity = { jwt: [{ issuer: issuer.url, audience: "copilotfleet" }] };
const provider = { type: "echo" as const };
const limits = { default: { connections: null } };
const env = { ...process.env, COPILOTFLEET_HOME: join(folder, "state") };
const options = { env, cwd: folder, config: { identity, provider, limits } };

async function tokensOf(alg: string): Promise<string[]> {
  await issuer.rotate(alg);
  return await Promise.all(
    Array.from({ length: TOKENS }, async (_, at) => await issuer.token({ jti: `t${at}` }, { alg })),
  );
}

/** Runs `work` for each number below `count`, some at a time. Resolves with how many were done in a second. */
async function rateOf(count: number, work: (at: number) => Promise<void>): Promise<number> {
  const start = performance.now();
  let next = 0;
  const worker = async () => {
    for (let at = next++; at < count; at = next++) await work(at);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return (count * 1000) / (performance.now() - start);
}

/** The processor time of this process since `since`, in milliseconds for each of `count` things. */
function processorMs(since: NodeJS.CpuUsage, count: number): string {
  const { user, system } = process.cpuUsage(since);
  return `${((user + system) / 1000 / count).toFixed(3)} ms of processor time each`;
}

function p(times: readonly number[], share: number): number {
  return times.toSorted((a, b) => a - b)[Math.floor(times.length * share)] ?? Number.NaN;
}

async function signOnAt(port: number, token: string): Promise<void> {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "connect", params: { token } });
  const socket = connect({ host: "127.0.0.1", port, noDelay: true });
  const answer = await new Promise<string>((resolve, reject) => {
    socket.once("error", reject);
    socket.once("data", (chunk) => resolve(String(chunk)));
    socket.write(`Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
  });
  socket.destroy();
  if (!answer.includes("protocolVersion")) throw new Error(answer);
}

try {
  const { config } = loadConfig({ env, cwd: folder, flags: options.config });
  const store = openFileStore(join(folder, "state"));
  for (const alg of ["RS256", "ES256", "EdDSA"]) {
    const tokens = await tokensOf(alg);
    const signOn = new SignOn({ store, config, clock: systemClock });
    const check = async (at: number) => {
      const found = await signOn.identify(tokens[at % TOKENS]);
      if (!("user" in found)) throw new Error(JSON.stringify(found));
    };
    for (let at = 0; at < 500; at++) await check(at);
    const times: number[] = [];
    const costs: number[] = [];
    for (let at = 0; at < checks; at++) {
      const [start, before] = [performance.now(), process.cpuUsage()];
      await check(at);
      const { user, system } = process.cpuUsage(before);
      times.push(performance.now() - start);
      costs.push((user + system) / 1000);
    }
    const before = process.cpuUsage();
    const rate = await rateOf(checks, check);
    const cost = processorMs(before, checks);
    const [half, most] = [p(times, 0.5), p(times, 0.99)].map((ms) => ms.toFixed(3));
    console.log(
      `${alg.padEnd(6)} check: median ${half} ms, p99 ${most} ms, ${rate.toFixed(0)} checks a second, ${cost}`,
    );
    // On a busy machine, the wall time shows how long the process waited for a processor.
    claim(`p99 of the processor time of a check with ${alg} to 1 ms`, p(costs, 0.99), 1);
    claim(`1,000 checks a second to those with ${alg}`, 1000 / rate, 1);
  }
  await store.close();
  const tokens = await tokensOf("ES256");
  await using fleet = await Fleet.open(options);
  const door = await fleet.openFrontDoor({ listen: { host: "127.0.0.1", port: 0 } });
  const { port } = door.address;
  for (let at = 0; at < 100; at++) await signOnAt(port, tokens[at % TOKENS] ?? "");
  const before = process.cpuUsage();
  const rate = await rateOf(connections, async (at) => await signOnAt(port, tokens[at % TOKENS] ?? ""));
  const cost = processorMs(before, connections);
  console.log(
    `through a front door, each with a connection to the user's server: ${rate.toFixed(0)} sign-ons a second, ${cost}`,
  );
  claim("1,000 sign-ons a second to those through the front door", 1000 / rate, 1);
  await door.close();
  await fleet.servers.stop(
    (await fleet.servers.list()).map(({ id }) => id),
    { force: true },
  );
} finally {
  await issuer[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
}
