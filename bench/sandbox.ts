/**
 * Compares servers in the sandbox that `sandbox.mode: "auto"` chooses with servers without a sandbox: the time of
 * `spawn` (also with `landlock`), the private memory of an idle server, and the time of a turn. Only turns in the
 * sandbox pass through the model gateway. The model answers at once, so that the cost of the sandbox is as large a part
 * of a turn as possible. The limit for a turn applies to a process that has run for a while, such as `serve`, because
 * Node.js compiles the gateway's code only after some hundred turns. The first turns of a process are shown, too.
 *
 * Run: npm run build && npx tsx bench/sandbox.ts [rounds]
 */
import { Fleet } from "../src/index.js";
import { startEchoModel } from "../src/providers/echo.js";
import { claim, compare, fleetCommand, median, printMachine, ratio, withState } from "./measure.js";

const rounds = Number(process.argv[2] ?? 21);
const MODES = ["none", "auto"] as const;
const TURNS = 20;
/** After this many rounds, Node.js has compiled the code that a turn runs. */
const WARM_UP_ROUNDS = 50;
const KB = 1024;

/** The sandbox that `auto` chooses on this machine. */
async function chosenSandbox(env: NodeJS.ProcessEnv) {
  await using fleet = await Fleet.open({ env });
  const { server } = await fleet.servers.spawn("chosen");
  await fleet.servers.stop([server.id]);
  return server.sandbox;
}

printMachine();
await withState(async (env, folder) => {
  const withMode = (mode: string) => ({ ...env, COPILOTFLEET_SANDBOX_MODE: mode });
  const spawned = await compare(
    rounds,
    [...MODES, "landlock"].map((mode) => ({
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
  const { mode } = await chosenSandbox(env);
  console.log(`auto chooses ${mode}`);
  const without = "spawn, sandbox.mode none";
  claim("spawn under Landlock / without", ratio(spawned, "spawn, sandbox.mode landlock", without), 1.15);
  claim(
    `spawn in ${mode} / without`,
    ratio(spawned, "spawn, sandbox.mode auto", without),
    mode === "bwrap" ? 1.4 : 1.15,
  );

  await using model = await startEchoModel();
  const withGateway = (mode: string, key: object) => ({
    ...withMode(mode),
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    ...key,
  });
  await using none = await Fleet.open({ env: withGateway("none", {}), cwd: folder });
  await using auto = await Fleet.open({
    env: withGateway("auto", { COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}', MODEL_KEY: "bench" }),
    cwd: folder,
  });
  await none.sessions.create({ user: "none", purpose: "bench" });
  await auto.sessions.create({ user: "auto", purpose: "bench" });
  const servers = await auto.servers.list();
  const memory = MODES.map((mode) => servers.find(({ user }) => user === mode)?.memoryBytes ?? Number.NaN);
  const [outsideBytes = Number.NaN, insideBytes = Number.NaN] = memory;
  console.log(
    `private memory with one session: ${memory.map((bytes) => `${Math.round(bytes / KB)} kB`).join(" and ")}`,
  );
  claim("more memory in the sandbox, in MB", (insideBytes - outsideBytes) / KB / KB, 0.5);

  const taking = (name: string, fleet: Fleet, user: string) => ({
    name,
    firstTokenMs: [] as number[],
    async round() {
      // Use a new session, because each turn sends the whole history, so in a shared session later rounds would be
      // slower.
      const session = await fleet.sessions.create({ user, purpose: "bench" });
      await fleet.sessions.send(session, "hello");
      const began = performance.now();
      for (let turn = 0; turn < TURNS; turn++) {
        const start = performance.now();
        let firstMs: number | undefined;
        const onDelta = () => {
          firstMs ??= performance.now() - start;
        };
        await fleet.sessions.send(session, "hello", { onDelta });
        this.firstTokenMs.push(firstMs ?? Number.NaN);
      }
      const took = performance.now() - began;
      await session.disconnect();
      await fleet.sessions.delete([session.sessionId]);
      return took;
    },
  });
  const outside = taking(`${TURNS} turns, no sandbox, no model gateway`, none, "none");
  const inside = taking(`${TURNS} turns, sandbox and model gateway`, auto, "auto");
  const contenders = [outside, inside].map((each) => ({ name: each.name, round: async () => await each.round() }));
  const laterMs = () => median(inside.firstTokenMs) - median(outside.firstTokenMs);

  console.log("\nThe first turns of a process:");
  const cold = await compare(rounds, contenders);
  const coldRatio = ratio(cold, inside.name, outside.name);
  console.log(`turn: ${coldRatio.toFixed(3)} times as long, first token ${laterMs().toFixed(2)} ms later`);

  for (let round = 0; round < WARM_UP_ROUNDS; round++) for (const { round: run } of contenders) await run();
  for (const each of [outside, inside]) each.firstTokenMs.length = 0;
  console.log("\nAfter that:");
  const turns = await compare(rounds, contenders);
  claim("turn in the sandbox through the model gateway / without both", ratio(turns, inside.name, outside.name), 1.05);
  claim("first token later, in ms", laterMs(), 1);
});
