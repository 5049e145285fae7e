import { isFleetError } from "../../errors.js";
import type { Connection } from "./connection.js";
import type { Keys } from "./keys.js";
import { LEAVE_TURN, TAKE_TURN } from "./writer-lock-scripts.js";

/** Longer than an update takes, and no longer than others should wait for a writer that died. */
export const TURN_MS = 250;
const PLACE_MS = 1_000;
/** After that long a writer goes on without its turn. */
const PATIENCE_MS = 2_000;
/** How often a waiter asks that hears nothing: the next in turn, and those behind it. */
const NEXT_ASKS_MS = 25;
const OTHERS_ASK_MS = 150;

/** What a writer begins from: the registry as it is, null when there is none, undefined when the wait was given up. */
export type WriterTurn = { registry: string | null | undefined };

/**
 * Writers of the registry take turns, in the order in which they come. That is politeness: the compare in the commit is
 * what keeps updates apart. But fifty who all try at once, and all but one in vain, take seconds for what takes
 * milliseconds one after the other.
 */
export class WriterLock {
  readonly #connection: Connection;
  readonly #keys: readonly string[];
  readonly #channel: string;
  /** Names this store among the writers; it has one turn at a time. */
  readonly token: string;
  #listens = true;
  #heard: string | undefined;
  #wake: (() => void) | undefined;

  constructor(connection: Connection, keys: Keys, token: string) {
    this.#connection = connection;
    this.token = token;
    this.#keys = [...keys.turnKeys, keys.registry];
    this.#channel = `${keys.turn}:${token}`;
  }

  /** Waits for the turn; the registry comes with it. */
  async take(): Promise<WriterTurn> {
    const until = performance.now() + PATIENCE_MS;
    this.#heard = undefined;
    do {
      const [word, rest] = await this.#connection.run(TAKE_TURN, this.#keys, [this.token, TURN_MS, PLACE_MS]);
      if (word === "turn") return { registry: typeof rest === "string" ? rest : null };
      // Once more after having begun to listen: the turn may have come before.
      if (await this.#listen()) continue;
      await this.#hear(rest === 0 ? NEXT_ASKS_MS : OTHERS_ASK_MS);
      if (this.#heard !== undefined) return { registry: this.#heard === "" ? null : this.#heard };
    } while (performance.now() < until);
    return { registry: undefined };
  }

  /** Gives up a turn, or a place in the queue, that no commit has ended. */
  async leave(): Promise<void> {
    await this.#connection.run(LEAVE_TURN, this.#keys, [this.token, TURN_MS]);
  }

  /** @returns whether it begins only now. Where rules forbid it (ACL), asking is all there is. */
  async #listen(): Promise<boolean> {
    if (!this.#listens) return false;
    const onMessage = (registry: string) => {
      this.#heard = registry;
      this.#wake?.();
    };
    try {
      return await this.#connection.listen(this.#channel, onMessage);
    } catch (error) {
      if (!isFleetError(error, "FLEET_STORE_DENIED")) throw error;
      this.#listens = false;
      return false;
    }
  }

  async #hear(ms: number): Promise<void> {
    if (this.#heard !== undefined) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = undefined;
  }
}
