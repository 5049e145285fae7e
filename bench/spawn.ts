/**
 * Compares `spawn --count N` with starting N bare runtimes one after another, each once the one before it answers an
 * authenticated ping.
 *
 * Run: npm run build && npx tsx bench/spawn.ts [servers]
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { findRuntime } from "../src/runtime/launch/versions.js";
import { probe } from "../src/runtime/process/probe.js";
import { claim, compare, fleetCommand, printMachine, ratio, withState } from "./measure.js";

const count = Number(process.argv[2] ?? 50);
const { path } = findRuntime(null, {});

printMachine();
await withState(async (env, folder) => {
  let round = 0;
  const bare = `${count} bare runtimes, one after another`;
  const fleet = `copilotfleet spawn --count ${count}`;
  const medians = await compare(5, [
    { name: bare, round: () => startBare(join(folder, `bare-${round++}`)) },
    {
      name: fleet,
      round: async () => {
        const start = performance.now();
        await fleetCommand(["spawn", "--user", `round-${round}`, "--count", String(count), "--json"], env);
        const took = performance.now() - start;
        await fleetCommand(["stop", "--all", "--force"], env);
        return took;
      },
    },
  ]);
  claim("spawn / bare runtimes", ratio(medians, fleet, bare), 1.5);
});

/** Starts the runtimes, and ends them afterwards. Resolves with the milliseconds until the last one answered. */
async function startBare(folder: string): Promise<number> {
  const started = performance.now();
  const running = [];
  for (let index = 0; index < count; index++) {
    const home = join(folder, String(index));
    await mkdir(home, { recursive: true });
    const port = 17_000 + index;
    const child = spawn(path, ["--headless", "--host", "127.0.0.1", "--port", String(port), "--no-auto-login"], {
      env: {
        PATH: process.env.PATH,
        HOME: home,
        COPILOT_HOME: home,
        COPILOT_CONNECTION_TOKEN: "bench",
        COPILOT_OFFLINE: "true",
      },
      stdio: ["ignore", "pipe", "inherit"],
    });
    running.push(child);
    for await (const line of createInterface(child.stdout)) if (line.includes("listening")) break;
    await probe({ address: "127.0.0.1", port, token: "bench" }, AbortSignal.timeout(5_000));
  }
  const took = performance.now() - started;
  await Promise.all(
    running.map(async (child) => {
      const exit = once(child, "exit");
      child.kill("SIGKILL");
      await exit;
    }),
  );
  return took;
}
