import { setTimeout as sleep } from "node:timers/promises";
import type { Connection } from "./connection.js";
import { newId } from "./documents.js";
import type { Keys } from "./keys.js";
import { LEAVE_TURN, TAKE_TURN } from "./turn-scripts.js";

/** Longer than an update takes, and no longer than others should wait for a writer that died. */
const TURN_MS = 250;
const PLACE_MS = 1_000;
/** After that long a writer goes on without its turn. */
const PATIENCE_MS = 2_000;
/** What one turn takes about: to look again when it may be over. */
const USUAL_MS = 1;
const LONGEST_PAUSE_MS = 20;

/** What a writer begins from. */
export interface Turn {
  /** Names the turn for {@link Turns.leave}, and for the commit that ends it. */
  token: string;
  /** The registry as it is, or null when there is none; undefined when the wait was given up. */
  registry: string | null | undefined;
}

/**
 * Writers of the registry take turns, in the order in which they come. That is politeness: the compare in the commit is
 * what keeps updates apart. But fifty who all try at once, and all but one in vain, take seconds for what takes
 * milliseconds one after the other.
 */
export class Turns {
  readonly #connection: Connection;
  readonly #keys: readonly string[];

  constructor(connection: Connection, keys: Keys) {
    this.#connection = connection;
    this.#keys = [keys.turn, keys.turnQueue, keys.turnPlaces];
  }

  /** Waits for the turn, and reads the registry in the same step. */
  async take(): Promise<Turn> {
    const token = newId();
    const until = performance.now() + PATIENCE_MS;
    do {
      const [word, rest] = await this.#connection.run(TAKE_TURN, this.#keys, [token, TURN_MS, PLACE_MS]);
      if (word === "turn") return { token, registry: typeof rest === "string" ? rest : null };
      await sleep(Math.min((Number(rest) + 1) * USUAL_MS, LONGEST_PAUSE_MS));
    } while (performance.now() < until);
    return { token, registry: undefined };
  }

  /** Gives up a turn, or a place in the queue, that no commit has ended. */
  async leave({ token }: Turn): Promise<void> {
    await this.#connection.run(LEAVE_TURN, this.#keys, [token]);
  }
}
