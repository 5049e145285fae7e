import { claim, compare } from "../measure.js";
import { type Crowd, type CrowdOptions, withCrowds } from "./crowds.js";
import type { PartProcess } from "./processes.js";

export interface StreamingOptions extends CrowdOptions {
  /** The number of words in each answer. Each word is a delta. */
  words: number;
  rounds: number;
}

/** Compares many streams at the same time, directly and through the door. */
export async function measureStreaming(
  env: NodeJS.ProcessEnv,
  folder: string,
  model: PartProcess,
  { clients, sessions, words, rounds }: StreamingOptions,
): Promise<void> {
  await withCrowds(env, folder, model, { clients, sessions }, async ({ direct, through, usage }) => {
    const streams = await compare(
      rounds,
      [direct, through].map((crowd) => ({
        name: `${sessions} streams of ${clients} clients, ${crowd.name}`,
        round: async () => {
          const before = usage();
          const { ms, deltas } = await stream(crowd, words);
          const perDelta = Object.entries(usage()).map(
            ([name, used]) => `${name} ${(((used - before[name as keyof typeof before]) * 1e6) / deltas).toFixed(0)}`,
          );
          console.log(
            `   ${crowd.name}: ${deltas} deltas in ${(ms / 1000).toFixed(1)} s, ${((deltas / ms) * 1000).toFixed(0)} a second; processor time in µs per delta: ${perDelta.join(", ")}`,
          );
          return ms;
        },
      })),
    );
    const [directly = 0, throughDoor = 0] = [...streams.values()];
    claim("streaming, time through the door to directly", throughDoor / directly, 1 / 0.9);
  });
}

/** Runs a turn in each session of a crowd at the same time. Returns the milliseconds and the number of deltas. */
export async function stream(crowd: Crowd, words: number): Promise<{ ms: number; deltas: number }> {
  const prompt = Array.from({ length: words }, (_, index) => `w${index}`).join(" ");
  const before = count(crowd);
  const start = performance.now();
  const turns = crowd.members.flatMap(({ client, ids }) => ids.map(async (id) => await client.turn(id, prompt)));
  await Promise.all(turns);
  const ms = performance.now() - start;
  const deltas = count(crowd) - before;
  // An answer consists of "[turn N]", which is two words, and the words of the prompt.
  if (deltas !== turns.length * (words + 2)) throw new Error(`${crowd.name}: ${deltas} deltas have come`);
  return { ms, deltas };
}

function count({ members }: Crowd): number {
  return members.reduce((sum, { client }) => sum + client.deltas, 0);
}
