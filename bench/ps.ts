/**
 * Compares `ps` with starting Node without a script, and with `pm2 jlist` for the same number of servers.
 *
 * Run: npm run build && npx tsx bench/ps.ts [servers]
 */
import { execFile } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { findRuntime } from "../src/runtime/launch/versions.js";
import { claim, compare, fleetCommand, printMachine, ratio, withState } from "./measure.js";

const PM2 = "pm2@7.0.4";
const run = promisify(execFile);
const count = Number(process.argv[2] ?? 16);

printMachine();
await withState(async (env, folder) => {
  await fleetCommand(["spawn", "--user", "load", "--count", String(count)], env);
  const pm2 = await startWithPm2(folder, count);
  try {
    const medians = await compare(25, [
      { name: "node -e 0", round: async () => void (await run(process.execPath, ["-e", "0"])) },
      {
        name: `copilotfleet ps --json, ${count} servers`,
        round: async () => void (await fleetCommand(["ps", "--json"], env)),
      },
      { name: `pm2 jlist, ${count} servers`, round: async () => void (await pm2(["jlist"])) },
    ]);
    claim("ps / node -e 0", ratio(medians, `copilotfleet ps --json, ${count} servers`, "node -e 0"), 2.2);
    claim(
      "ps / pm2 jlist",
      ratio(medians, `copilotfleet ps --json, ${count} servers`, `pm2 jlist, ${count} servers`),
      1,
    );
  } finally {
    await pm2(["kill"]);
  }
});

/**
 * Installs PM2 in a temporary folder, because the project does not depend on it, and starts the same number of runtimes
 * with it.
 */
async function startWithPm2(folder: string, servers: number): Promise<(args: string[]) => Promise<unknown>> {
  const prefix = join(folder, "pm2");
  await mkdir(prefix);
  await writeFile(join(prefix, "package.json"), "{}");
  await run("npm", ["install", "--no-audit", "--no-fund", "--ignore-scripts", PM2], { cwd: prefix });
  const env = {
    ...process.env,
    PM2_HOME: join(prefix, "home"),
    COPILOT_OFFLINE: "true",
    COPILOT_CONNECTION_TOKEN: "bench",
  };
  const pm2 = (args: string[]) =>
    run(process.execPath, [join(prefix, "node_modules", "pm2", "bin", "pm2"), ...args], {
      env,
      maxBuffer: 64 * 1024 * 1024,
    });
  const { path } = findRuntime(null, {});
  const apps = Array.from({ length: servers }, (_, index) => ({
    name: `server-${index}`,
    script: path,
    interpreter: "none",
    args: [
      "--headless",
      "--host",
      "127.0.0.1",
      "--port",
      String(16_000 + index),
      "--no-auto-login",
      "--no-auto-update",
    ],
    env: { COPILOT_HOME: join(prefix, `home-${index}`) },
  }));
  const ecosystem = join(prefix, "ecosystem.config.json");
  await writeFile(ecosystem, JSON.stringify({ apps }));
  await pm2(["start", ecosystem]);
  return pm2;
}
