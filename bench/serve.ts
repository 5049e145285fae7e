/**
 * Measures the costs of `serve`: its start with servers to adopt, and its memory and processor time while idle.
 *
 * Run: npm run build && npx tsx bench/serve.ts [servers] [seconds of idling]
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { COMMAND, claim, compare, fleetCommand, printMachine, processorSeconds, withState } from "./measure.js";

const count = Number(process.argv[2] ?? 50);
const idleSeconds = Number(process.argv[3] ?? 120);
/** The length of the final part of the idle time, in which the processor time is measured. */
const countedSeconds = Math.min(60, idleSeconds / 2);
const MB = 1024 * 1024;

interface Serving {
  pid: number;
  /** The time from the start of the process to the log line "serving", in milliseconds. */
  startMs: number;
  /** Ends `serve`. The servers keep running. */
  leave(): Promise<void>;
}

printMachine();
await withState(async (shared) => {
  const env = { ...shared, COPILOTFLEET_SERVE_METRICS: "127.0.0.1:0", COPILOTFLEET_SERVE_LISTEN: "127.0.0.1:0" };
  await fleetCommand(["spawn", "--user", "load", "--count", String(count)], env);
  const start = `serve, ${count} servers to adopt`;
  const medians = await compare(5, [
    {
      name: start,
      round: async () => {
        const serving = await serve(env);
        await serving.leave();
        return serving.startMs;
      },
    },
  ]);
  claim(`seconds until it serves ${count} servers`, (medians.get(start) ?? Number.NaN) / 1000, 2);

  const serving = await serve(env);
  try {
    await delay((idleSeconds - countedSeconds) * 1000);
    const [before, begun] = [processorSeconds(serving.pid), performance.now()];
    await delay(countedSeconds * 1000);
    const percent = ((processorSeconds(serving.pid) - before) / ((performance.now() - begun) / 1000)) * 100;
    const memory = memoryOf(serving.pid);
    console.log(`after ${idleSeconds} s: resident ${mb(memory.resident)}, of that private ${mb(memory.private)}`);
    claim(`MB resident with ${count} idle servers`, memory.resident / MB, 80);
    claim(`% of one core over ${countedSeconds} s with ${count} idle servers`, percent, 2);
  } finally {
    await serving.leave();
  }
});

async function serve(env: NodeJS.ProcessEnv): Promise<Serving> {
  const begun = performance.now();
  const child = spawn(process.execPath, [COMMAND, "serve", "--leave-running"], {
    env,
    stdio: ["ignore", "ignore", "pipe"],
  });
  const ended = once(child, "exit");
  const { pid } = child;
  if (pid === undefined) throw new Error("serve could not be started");
  const lines = createInterface({ input: child.stderr });
  let log = "";
  const startMs = await new Promise<number>((resolve, reject) => {
    lines.on("line", (line) => {
      log += `${line}\n`;
      if (line.includes('"msg":"serving"')) resolve(performance.now() - begun);
    });
    lines.once("close", () => reject(new Error(`serve ended before it served:\n${log}`)));
  });
  return {
    pid,
    startMs,
    leave: async () => {
      child.kill("SIGTERM");
      await ended;
    },
  };
}

function memoryOf(pid: number): { resident: number; private: number } {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const bytes = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]) * 1024;
  return { resident: bytes("VmRSS"), private: bytes("RssAnon") };
}

function mb(bytes: number): string {
  return `${(bytes / MB).toFixed(1)} MB`;
}
