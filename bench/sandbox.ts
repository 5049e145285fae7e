/**
 * Compares servers in the sandbox that `sandbox.mode: "auto"` chooses with servers without one: the time of `spawn`, the
 * private memory of an idle server, and the time of a turn.
 *
 * Run: npm run build && npx tsx bench/sandbox.ts [rounds]
 */
import { Fleet } from "../src/index.js";
import { claim, compare, fleetCommand, printMachine, ratio, withState } from "./measure.js";

const rounds = Number(process.argv[2] ?? 21);
const MODES = ["none", "auto"] as const;
const TURNS = 20;
const KB = 1024;

printMachine();
await withState(async (env, folder) => {
  const withMode = (mode: string) => ({ ...env, COPILOTFLEET_SANDBOX_MODE: mode });
  const spawned = await compare(
    rounds,
    MODES.map((mode) => ({
      name: `spawn, sandbox.mode ${mode}`,
      round: async () => {
        const start = performance.now();
        await fleetCommand(["spawn", "--user", mode], withMode(mode));
        const took = performance.now() - start;
        await fleetCommand(["stop", "--all", "--force"], env);
        return took;
      },
    })),
  );
  claim("spawn in the sandbox / without", ratio(spawned, "spawn, sandbox.mode auto", "spawn, sandbox.mode none"), 1.15);

  await using none = await Fleet.open({ env: withMode("none"), cwd: folder });
  await using auto = await Fleet.open({ env: withMode("auto"), cwd: folder });
  const [bare, sandboxed] = await Promise.all([
    none.createSession({ user: "none", purpose: "bench" }),
    auto.createSession({ user: "auto", purpose: "bench" }),
  ]);
  const servers = await auto.servers.list();
  const memory = MODES.map((mode) => servers.find(({ user }) => user === mode)?.memoryBytes ?? Number.NaN);
  const [without = Number.NaN, within = Number.NaN] = memory;
  console.log(
    `private memory with one session: ${memory.map((bytes) => `${Math.round(bytes / KB)} kB`).join(" and ")}`,
  );
  claim("more memory in the sandbox, in MB", (within - without) / KB / KB, 0.5);

  const taking = (name: string, fleet: Fleet, session: Awaited<ReturnType<Fleet["createSession"]>>) => ({
    name,
    round: async () => {
      for (let turn = 0; turn < TURNS; turn++) await fleet.send(session, "hello");
      return undefined;
    },
  });
  const [outside, inside] = [`${TURNS} turns, sandbox.mode none`, `${TURNS} turns, sandbox.mode auto`];
  const turns = await compare(rounds, [taking(outside, none, bare), taking(inside, auto, sandboxed)]);
  claim("turn in the sandbox / without", ratio(turns, inside, outside), 1.05);
});
