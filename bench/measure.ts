import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

/** What the benchmarks share: contenders take turns in one run, and only ratios of medians are claimed. */

export const COMMAND = fileURLToPath(new URL("../bin/run.js", import.meta.url));
const run = promisify(execFile);

export interface Contender {
  name: string;
  /** One round; its wall time is what counts, unless it returns milliseconds of its own. */
  round: () => Promise<number | undefined>;
}

/** Median milliseconds per contender, in rounds that alternate (A B C A B C …) after one that is not counted. */
export async function compare(rounds: number, contenders: readonly Contender[]): Promise<Map<string, number>> {
  const times = new Map(contenders.map(({ name }) => [name, [] as number[]]));
  for (let index = 0; index <= rounds; index++) {
    for (const { name, round } of contenders) {
      const start = performance.now();
      const own = await round();
      if (index > 0) times.get(name)?.push(own ?? performance.now() - start);
    }
  }
  const medians = new Map<string, number>();
  for (const [name, list] of times) {
    const sorted = list.toSorted((a, b) => a - b);
    const median = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
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

/** A scratch folder and an environment that uses it as the state folder; removed, and servers stopped, at the end. */
export async function withState(use: (env: NodeJS.ProcessEnv, folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-bench-"));
  const env = {
    ...process.env,
    COPILOTFLEET_HOME: join(folder, "state"),
    COPILOTFLEET_PROVIDER_TYPE: "echo",
    COPILOT_OFFLINE: "true",
    COPILOTFLEET_PORTS_FROM: "15000",
    COPILOTFLEET_PORTS_TO: "15999",
  };
  try {
    await use(env, folder);
  } finally {
    await fleetCommand(["stop", "--all", "--force"], env);
    await rm(folder, { recursive: true, force: true });
  }
}

function ms(value: number): string {
  return `${value.toFixed(1).padStart(8)} ms`;
}
