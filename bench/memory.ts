/**
 * Compares the memory of a server and its sessions with the memory that `deploy` requests from an orchestrator
 * (`src/deploy/sizing.ts`).
 *
 * Run: npm run build && npx tsx bench/memory.ts [sessions]
 */
import { SERVER_MEMORY, SESSION_MEMORY } from "../src/deploy/sizing.js";
import { claim, fleetCommand, printMachine, withState } from "./measure.js";

const sessions = Number(process.argv[2] ?? 30);
const MB = 1024 * 1024;

printMachine();
await withState(async (env) => {
  const turn = async (index: number) =>
    void (await fleetCommand(["create", "--user", "bench", "--id", `s${index}`, "--prompt", "hello"], env));
  const memory = async () => {
    const { servers } = JSON.parse(await fleetCommand(["ps", "--json"], env)) as { servers: { memoryBytes: number }[] };
    return servers[0]?.memoryBytes ?? Number.NaN;
  };
  await turn(0);
  const first = await memory();
  console.log(`after one turn: ${(first / MB).toFixed(1)} MB private`);
  for (let index = 1; index <= sessions; index++) await turn(index);
  const each = ((await memory()) - first) / sessions;
  console.log(`each of ${sessions} further sessions: ${(each / MB).toFixed(2)} MB`);
  claim("a server after a turn to what is asked for", first / SERVER_MEMORY, 1);
  claim("a further session to what is asked for", each / SESSION_MEMORY, 1);
});
