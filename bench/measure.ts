import { execFile } from "node:child_process";
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Fleet } from "../src/index.js";

/** What the benchmarks share: contenders take turns in one run, and only ratios of medians are claimed. */

export const COMMAND = fileURLToPath(new URL("../bin/run.js", import.meta.url));
const run = promisify(execFile);
const LIMIT_MS = 60 * 60 * 1000;
/** In this unit the kernel counts processor time for /proc on every architecture (`USER_HZ`, proc(5)). */
const TICKS_PER_SECOND = 100;

export interface Contender {
  name: string;
  /** One round; its wall time is what counts, unless it returns milliseconds of its own. */
  round: () => Promise<number | undefined>;
}

/**
 * Median milliseconds per contender, in rounds that alternate (A B C, C B A, A B C …) after one that is not counted: what
 * grows with time, such as histories, weighs on all of them alike.
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
    const sorted = list.toSorted((a, b) => a - b);
    const middle = (sorted.length - 1) / 2;
    const median = ((sorted[Math.floor(middle)] ?? Number.NaN) + (sorted[Math.ceil(middle)] ?? Number.NaN)) / 2;
    medians.set(name, median);
    const [min, max] = [sorted[0] ?? Number.NaN, sorted.at(-1) ?? Number.NaN];
    console.log(`${name.padEnd(44)} median ${ms(median)}   min ${ms(min)}   max ${ms(max)}   n ${sorted.length}`);
  }
  return medians;
}

/** Prints a ratio beside its limit and makes the run fail when it is over it. */
export function claim(what: string, ratio: number, limit: number): void {
  const ok = ratio <= limit;
  console.log(`${ok ? "ok  " : "FAIL"} ${what}: ${ratio.toFixed(3)} (limit ${limit})`);
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

/** The built command in a state folder of its own. */
export async function fleetCommand(args: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
  const { stdout } = await run(process.execPath, [COMMAND, ...args], { env, maxBuffer: 64 * 1024 * 1024 });
  return stdout;
}

export interface StateOptions {
  /** How long the whole run may take, in milliseconds; after that it fails. */
  limitMs?: number;
}

/**
 * A scratch folder and an environment that uses it as the state folder. However the run ends, by its own end, an error,
 * a signal or its time limit, the servers are stopped and the folder is removed: a server left alone goes on with its turns.
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
  // At once and without a wait: whoever sent the signal may not leave time for more.
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
    await fleet.drain({ force: true });
  } finally {
    clearTimeout(limit);
    process.off("SIGINT", onInterrupt).off("SIGTERM", onTerminate);
    killProcessesOf(folder);
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Ends what was started with this run's folder in its environment, recorded or not. @returns how many that were. */
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
    return false; // ended meanwhile, or somebody else's
  }
}

/** Processor time of a process so far, user and system, in seconds. */
export function processorSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

function ms(value: number): string {
  return `${value.toFixed(1).padStart(8)} ms`;
}
