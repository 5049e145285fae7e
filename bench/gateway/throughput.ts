import { claim, compare, median } from "../measure.js";
import { type Crowd, type Member, withCrowds } from "./crowds.js";
import type { PartProcess } from "./processes.js";

/** How many clients send at the same time, and how many turns each of them takes, one after another, in a round. */
const LOADS = [
  { clients: 1, turns: 60 },
  { clients: 8, turns: 20 },
  { clients: 32, turns: 10 },
  { clients: 128, turns: 4 },
];
const ROUNDS = 4;
/** The limits below apply to this number of clients. */
const JUDGED = 32;

export interface ThroughputLimits {
  /** The throughput through the door, as a part of that of direct clients. */
  minThroughput: number;
  /** The processor time of the door for each turn, in milliseconds. */
  maxDoorMs: number;
}

/**
 * Compares the turns per second of many clients on 4 servers: directly, through the door, and through a process that
 * only passes bytes on, which shows how much of the cost no door in Node can avoid. The limits apply to clients with
 * TCP_NODELAY. A second row shows clients that leave Nagle's algorithm on.
 */
export async function measureThroughput(
  env: NodeJS.ProcessEnv,
  folder: string,
  model: PartProcess,
  limits: ThroughputLimits,
): Promise<void> {
  await measureLoads(env, folder, model, { loads: LOADS, nagle: false, limits });
  const loads = LOADS.filter((load) => load.clients === JUDGED);
  await measureLoads(env, folder, model, { loads, nagle: true, limits: null });
}

interface LoadOptions {
  loads: typeof LOADS;
  nagle: boolean;
  limits: ThroughputLimits | null;
}

async function measureLoads(
  env: NodeJS.ProcessEnv,
  folder: string,
  model: PartProcess,
  { loads, nagle, limits }: LoadOptions,
): Promise<void> {
  const clients = Math.max(...loads.map((load) => load.clients));
  await withCrowds(
    env,
    folder,
    model,
    { clients, sessions: 0, nagle, relay: true },
    async ({ direct, relayed, through }) => {
      console.log(`clients ${nagle ? "with Nagle's algorithm" : "with TCP_NODELAY"}`);
      for (const load of loads) {
        const total = load.clients * load.turns;
        const used = new Map<Crowd, number[]>();
        const round = async (crowd: Crowd) => {
          const members = crowd.members.slice(0, load.clients);
          for (const member of members) await member.renew();
          const before = crowd.between();
          const start = performance.now();
          await Promise.all(members.map(async (member) => await turns(member, load.turns)));
          const ms = performance.now() - start;
          used.set(crowd, [...(used.get(crowd) ?? []), ((crowd.between() - before) * 1000) / total]);
          return ms;
        };
        const times = await compare(
          ROUNDS,
          [direct, relayed, through].map((crowd) => ({
            name: `${total} turns of ${load.clients} clients, ${crowd.name}`,
            round: async () => await round(crowd),
          })),
        );
        const [directly = Number.NaN, throughRelay = Number.NaN, throughDoor = Number.NaN] = [...times.values()];
        // As in `compare`, the first round does not count.
        const perTurn = (crowd: Crowd) => median((used.get(crowd) ?? []).slice(1));
        console.log(
          `   ${load.clients} clients: ${rate(total, directly)} turns a second directly, ${rate(total, throughRelay)} through a relay (${(directly / throughRelay).toFixed(3)}), ${rate(total, throughDoor)} through the door (${(directly / throughDoor).toFixed(3)}); processor time per turn: ${perTurn(relayed).toFixed(2)} ms of the relay, ${perTurn(through).toFixed(2)} ms of the door`,
        );
        if (load.clients !== JUDGED || limits === null) continue;
        const { minThroughput, maxDoorMs } = limits;
        claim(`time of ${JUDGED} clients, through the door to directly`, throughDoor / directly, 1 / minThroughput);
        claim(`processor time of the door per turn at ${JUDGED} clients, in ms`, perTurn(through), maxDoorMs);
      }
    },
  );
}

async function turns({ client, ids: [id = ""] }: Member, count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await client.turn(id, "hello");
}

function rate(count: number, ms: number): string {
  return ((count / ms) * 1000).toFixed(0);
}
