import { claim, compare, median } from "../measure.js";
import { type Crowd, withCrowds } from "./crowds.js";
import type { PartProcess } from "./processes.js";

/** How many clients send at the same time, and how many turns each of them takes, one after another, in a round. */
const LOADS = [
  { clients: 1, turns: 60 },
  { clients: 8, turns: 20 },
  { clients: 32, turns: 10 },
  { clients: 100, turns: 4 },
];
const ROUNDS = 6;
/** The limits below apply to this number of clients. */
const JUDGED = 32;
const MIN_THROUGHPUT = 0.92;
const MAX_DOOR_MS = 0.9;

/** Compares the turns per second of many clients on 4 servers, directly and through the door. */
export async function measureThroughput(env: NodeJS.ProcessEnv, folder: string, model: PartProcess): Promise<void> {
  const clients = Math.max(...LOADS.map((load) => load.clients));
  await withCrowds(env, folder, model, { clients, sessions: clients }, async ({ direct, through, usage }) => {
    for (const load of LOADS) {
      const total = load.clients * load.turns;
      const doorMs: number[] = [];
      const round = async (crowd: Crowd) => {
        const before = usage().door;
        const start = performance.now();
        await Promise.all(crowd.members.slice(0, load.clients).map(async (member) => await turns(member, load.turns)));
        const ms = performance.now() - start;
        if (crowd === through) doorMs.push(((usage().door - before) * 1000) / total);
        return ms;
      };
      const times = await compare(
        ROUNDS,
        [direct, through].map((crowd) => ({
          name: `${total} turns of ${load.clients} clients, ${crowd.name}`,
          round: async () => await round(crowd),
        })),
      );
      const [directly = Number.NaN, throughDoor = Number.NaN] = [...times.values()];
      const doorPerTurn = median(doorMs.slice(1)); // as in `compare`, the first round does not count
      console.log(
        `   ${load.clients} clients: ${rate(total, directly)} turns a second directly, ${rate(total, throughDoor)} through the door (${(directly / throughDoor).toFixed(3)}); processor time of the door per turn: ${doorPerTurn.toFixed(2)} ms`,
      );
      if (load.clients !== JUDGED) continue;
      claim(`time of ${JUDGED} clients, through the door to directly`, throughDoor / directly, 1 / MIN_THROUGHPUT);
      claim(`processor time of the door per turn at ${JUDGED} clients, in ms`, doorPerTurn, MAX_DOOR_MS);
    }
  });
}

async function turns({ client, ids: [id = ""] }: Crowd["members"][number], count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await client.turn(id, "hello");
}

function rate(count: number, ms: number): string {
  return ((count / ms) * 1000).toFixed(0);
}
