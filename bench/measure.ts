import { execFile } from "node:child_process";
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Fleet } from "../src/index.js";

/** Helpers for all benchmarks. The compared operations run alternately, and only ratios of medians have limits. */

export const COMMAND = fileURLToPath(new URL("../bin/run.js", import.meta.url));
const run = promisify(execFile);
const LIMIT_MS = 60 * 60 * 1000;
/** The unit in which the kernel counts processor time in /proc, on every architecture (`USER_HZ`, proc(5)). */
const TICKS_PER_SECOND = 100;

export interface Contender {
  name: string;
  /** Runs one round. Resolves with the milliseconds to count, or with undefined to count the round's wall time. */
  round: () => Promise<number | undefined>;
}

/**
 * Measures the median milliseconds of each contender. The order alternates between rounds (A B C, C B A, A B C …), so
 * that effects that grow with time, such as histories, affect all contenders equally. The first round does not count.
 */
export async function compare(rounds: number, contenders: readonly Contender[]): Promise<Map<string, number>> {
  const times = new Map(contenders.map(({ name }) => [name, [] as number[]]));
  for (let index = 0; index <= rounds; index++) {
    for (const { name, round } of index % 2 === 0 ? contenders.toReversed() : contenders) {
      const start = performance.now();
      const own = await round();
      if (index > 0) times.get(name)?.push(own ?? performance.now() - start);
    }
  }
  const medians = new Map<string, number>();
  for (const [name, list] of times) {
    const middle = median(list);
    medians.set(name, middle);
    const [min, max] = [Math.min(...list), Math.max(...list)];
    console.log(`${name.padEnd(44)} median ${ms(middle)}   min ${ms(min)}   max ${ms(max)}   n ${list.length}`);
  }
  return medians;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(middle)] ?? Number.NaN) + (sorted[Math.ceil(middle)] ?? Number.NaN)) / 2;
}

/** Prints a ratio with its limit. If the ratio is above the limit, the process exits with 1. */
export function claim(what: string, ratio: number, limit: number): void {
  const ok = ratio <= limit;
  console.log(`${ok ? "ok  " : "FAIL"} ${what}: ${ratio.toFixed(3)} (limit ${Number(limit.toFixed(3))})`);
  if (!ok) process.exitCode = 1;
}

export function ratio(medians: Map<string, number>, a: string, b: string): number {
  return (medians.get(a) ?? Number.NaN) / (medians.get(b) ?? Number.NaN);
}

export function printMachine(): void {
  const processors = cpus();
  console.log(
    `Node ${process.versions.node}, ${process.platform}-${process.arch}, ${processors.length} x ${processors[0]?.model}`,
  );
}

/** Runs the built command and returns its standard output. */
export async function fleetCommand(args: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
  const { stdout } = await run(process.execPath, [COMMAND, ...args], { env, maxBuffer: 64 * 1024 * 1024 });
  return stdout;
}

export interface StateOptions {
  /** The time limit for the whole run, in milliseconds. The run fails when it is reached. */
  limitMs?: number;
}

/**
 * Runs `use` with a temporary folder, and with an environment whose state folder is in that folder. Then stops the
 * servers, which would otherwise continue their turns, and removes the folder: after success, an error, a signal or the
 * time limit.
 */
export async function withState(
  use: (env: NodeJS.ProcessEnv, folder: string) => Promise<void>,
  { limitMs = LIMIT_MS }: StateOptions = {},
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-bench-"));
  const env = {
    COPILOTFLEET_PORTS_FROM: "15000",
    COPILOTFLEET_PORTS_TO: "15999",
    ...process.env,
    COPILOTFLEET_HOME: join(folder, "state"),
    COPILOTFLEET_PROVIDER_TYPE: "echo",
    COPILOT_OFFLINE: "true",
  };
  // Do not wait for anything, because the sender of the signal may soon kill this process.
  const giveUp = (why: string, code: number) => {
    console.error(`${why}: ${killProcessesOf(folder)} processes of this run are ended`);
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
    process.exit(code);
  };
  const onInterrupt = () => giveUp("interrupted", 130);
  const onTerminate = () => giveUp("terminated", 143);
  const limit = setTimeout(() => giveUp(`FAIL not over after ${limitMs / 1000} s`, 1), limitMs);
  process.once("SIGINT", onInterrupt).once("SIGTERM", onTerminate);
  try {
    await use(env, folder);
    await using fleet = await Fleet.open({ env, cwd: folder });
    await fleet.pool.drain({ force: true });
  } finally {
    clearTimeout(limit);
    process.off("SIGINT", onInterrupt).off("SIGTERM", onTerminate);
    killProcessesOf(folder);
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

/**
 * Kills all processes that have this run's folder in their environment, even those that the fleet has not recorded.
 *
 * @returns the number of killed processes
 */
function killProcessesOf(folder: string): number {
  const others = readdirSync("/proc")
    .map(Number)
    .filter((pid) => pid > 1 && pid !== process.pid);
  return others.filter((pid) => killIfOf(pid, folder)).length;
}

function killIfOf(pid: number, folder: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/environ`, "latin1").includes(`=${folder}/`) && process.kill(pid, "SIGKILL");
  } catch {
    return false; // it has ended, or it belongs to another user
  }
}

/** Returns the user and system processor time that a process has used, in seconds. */
export function processorSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

function ms(value: number): string {
  return `${value.toFixed(1).padStart(8)} ms`;
}
