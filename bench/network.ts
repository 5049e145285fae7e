/**
 * Compares servers with `sandbox.network: "none"` with servers without a sandbox, and servers with `"public"` with
 * servers in the same sandbox with an open network: the time of `spawn`, the private memory of the processes beside an
 * idle server, such as the bridge, and the time of a turn. A turn's model requests pass through the bridge. The memory
 * of passt is shown alone, because passt belongs to no launch.
 *
 * Run: npm run build && npx tsx bench/network.ts [rounds]
 */

import { system } from "../src/base/system/system.js";
import { Fleet } from "../src/index.js";
import { processesByLaunch } from "../src/runtime/process/process-table.js";
import { claim, compare, fleetCommand, printMachine, ratio, withState } from "./measure.js";

const rounds = Number(process.argv[2] ?? 21);
const TURNS = 20;
const KB = 1024;

const SETTINGS = {
  "no sandbox": { COPILOTFLEET_SANDBOX_MODE: "none" },
  "landlock, no network": { COPILOTFLEET_SANDBOX_MODE: "landlock", COPILOTFLEET_SANDBOX_NETWORK: "none" },
  "bwrap, no network": { COPILOTFLEET_SANDBOX_MODE: "bwrap", COPILOTFLEET_SANDBOX_NETWORK: "none" },
  "auto, open network": { COPILOTFLEET_SANDBOX_MODE: "auto", COPILOTFLEET_SANDBOX_NETWORK: "open" },
  "auto, public network": { COPILOTFLEET_SANDBOX_MODE: "auto", COPILOTFLEET_SANDBOX_NETWORK: "public" },
} as const;
type Setting = keyof typeof SETTINGS;
const ALL = Object.keys(SETTINGS) as Setting[];
const userOf = (setting: Setting) => setting.replace(/\W+/g, "-");

printMachine();
await withState(async (env, folder) => {
  const spawned = await compare(
    rounds,
    ALL.map((setting) => ({
      name: `spawn, ${setting}`,
      round: async () => {
        const start = performance.now();
        await fleetCommand(["spawn", "--user", "bench"], { ...env, ...SETTINGS[setting] });
        const took = performance.now() - start;
        await fleetCommand(["stop", "--all", "--force"], env);
        return took;
      },
    })),
  );
  const without = "spawn, no sandbox";
  claim("spawn with bwrap and no network / without", ratio(spawned, "spawn, bwrap, no network", without), 1.4);
  claim("spawn with landlock and no network / without", ratio(spawned, "spawn, landlock, no network", without), 1.4);
  claim(
    "spawn, public network / open",
    ratio(spawned, "spawn, auto, public network", "spawn, auto, open network"),
    1.3,
  );

  const open = async (setting: Setting) => {
    const fleet = await Fleet.open({ env: { ...env, ...SETTINGS[setting] }, cwd: folder });
    await fleet.sessions.create({ user: userOf(setting), purpose: "bench" });
    return { setting, fleet };
  };
  const opened = await Promise.all(ALL.map(open));
  try {
    // `bench/sandbox.ts` compares the memory of the servers themselves.
    const launches = [...processesByLaunch(env.COPILOTFLEET_HOME ?? "").values()];
    const beside: number[] = [];
    for (const { setting, fleet } of opened) {
      const pid = (await fleet.servers.list()).find(({ user }) => user === userOf(setting))?.pid;
      const others = launches.find((all) => all.some(({ identity }) => identity.pid === pid)) ?? [];
      const bytes = others
        .filter(({ identity }) => identity.pid !== pid)
        .map(({ identity }) => system().processes.privateMemoryBytes(identity.pid) ?? 0);
      beside.push(bytes.reduce((all, one) => all + one, 0));
      console.log(`${setting}: ${bytes.length} further processes with ${Math.round((beside.at(-1) ?? 0) / KB)} kB`);
    }
    claim("private memory of the further processes, in MB", Math.max(...beside) / KB / KB, 3);

    const turns = await compare(
      rounds,
      opened.map(({ setting, fleet }) => ({
        name: `${TURNS} turns, ${setting}`,
        round: async () => {
          // Each round has a new session, because each turn sends the whole history.
          const session = await fleet.sessions.create({ user: userOf(setting), purpose: "bench" });
          await fleet.sessions.send(session, "hello");
          const start = performance.now();
          for (let turn = 0; turn < TURNS; turn++) await fleet.sessions.send(session, "hello");
          const took = performance.now() - start;
          await session.disconnect();
          await fleet.sessions.delete([session.sessionId]);
          return took;
        },
      })),
    );
    claim(
      "turn with bwrap and no network / without",
      ratio(turns, `${TURNS} turns, bwrap, no network`, `${TURNS} turns, no sandbox`),
      1.05,
    );
    claim(
      "turn, public network / open",
      ratio(turns, `${TURNS} turns, auto, public network`, `${TURNS} turns, auto, open network`),
      1.03,
    );
  } finally {
    for (const { fleet } of opened) await fleet.close();
  }
});
