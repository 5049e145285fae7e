import { isFleetError } from "../../../errors.js";
import type { Connection } from "../link/connection.js";
import type { Keys } from "../link/keys.js";
import { LEAVE_WRITER_LOCK, TAKE_WRITER_LOCK } from "../scripts/writer-lock-scripts.js";

/** How long a writer may hold the lock, in milliseconds. An update takes less time. */
export const HOLD_MS = 250;
const PLACE_MS = 1_000;
/** After this time a writer continues without the lock, in milliseconds. */
const PATIENCE_MS = 2_000;
/** How often the first writer in the queue asks for the lock if no message arrives, in milliseconds. */
const NEXT_ASKS_MS = 25;
/** The same for the other writers in the queue. */
const OTHERS_ASK_MS = 150;

export interface TakenLock {
  /** The current registry. Null if no registry exists, undefined if the writer continues without the lock. */
  registry: string | null | undefined;
}

/**
 * Lets the writers of the registry commit one after another, in the order of their arrival. This only saves time. Without
 * it, all writers but one would fail in each round and try again.
 */
export class WriterLock {
  readonly #connection: Connection;
  readonly #keys: readonly string[];
  readonly #channel: string;
  /** Identifies this store object among the writers. A store object holds the lock at most once at a time. */
  readonly token: string;
  #listens = true;
  #heard: string | undefined;
  #wake: (() => void) | undefined;

  constructor(connection: Connection, keys: Keys, token: string) {
    this.#connection = connection;
    this.token = token;
    this.#keys = [...keys.writerLockKeys, keys.registry];
    this.#channel = `${keys.writerLock}:${token}`;
  }

  async take(): Promise<TakenLock> {
    const until = performance.now() + PATIENCE_MS;
    this.#heard = undefined;
    do {
      const [word, rest] = await this.#connection.run(TAKE_WRITER_LOCK, this.#keys, [this.token, HOLD_MS, PLACE_MS]);
      if (word === "taken") return { registry: typeof rest === "string" ? rest : null };
      // Ask again after subscribing, because Redis may have sent the message before the subscription.
      if (await this.#listen()) continue;
      await this.#hear(rest === 0 ? NEXT_ASKS_MS : OTHERS_ASK_MS);
      if (this.#heard !== undefined) return { registry: this.#heard === "" ? null : this.#heard };
    } while (performance.now() < until);
    return { registry: undefined };
  }

  /** Releases the lock if no commit has released it, or gives up the place in the queue. */
  async leave(): Promise<void> {
    await this.#connection.run(LEAVE_WRITER_LOCK, this.#keys, [this.token, HOLD_MS]);
  }

  /**
   * Subscribes to this writer's channel. If Redis's access rules forbid that, the writer only polls.
   *
   * @returns whether this call started the subscription
   */
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
