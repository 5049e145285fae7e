import { isFleetError } from "../../base/errors.js";
import { printable } from "../../base/values/text.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { LogEndOptions } from "../../hosts/options.js";
import type { LogEnd } from "../../serve/logs.js";
import { linesOf } from "../render/results.js";

/** The end of a log, and the reference by which the command found its server. */
interface ReadLog extends LogEnd {
  reference: string;
}

/** Reads and follows the logs of servers. With `all`, a log that cannot be read does not affect the other logs. */
export class LogReader {
  readonly #fleet: Fleet;
  readonly #all: boolean;
  readonly #warned = new Set<string>();
  #failure: unknown;

  constructor(fleet: Fleet, all: boolean) {
    this.#fleet = fleet;
    this.#all = all;
  }

  /** Reads the ends of the logs. With `all`, leaves out logs that fail. @throws the first failure if all logs fail */
  async ends(references: readonly string[], options: LogEndOptions): Promise<ReadLog[]> {
    const found = await Promise.all(
      references.map(async (reference) => {
        const read = async () => await this.#fleet.servers.logEnd(reference, options);
        const end = await this.#attempt(reference, read);
        return end === null ? [] : [{ ...end, reference }];
      }),
    );
    const ends = found.flat();
    if (ends.length === 0) this.#throwFailure();
    return ends;
  }

  /** Prints each line that is added to the logs. @throws the signal's reason; if all logs ended, the first failure */
  async follow(ends: readonly ReadLog[], signal: AbortSignal, print: (log: ReadLog, line: string) => void) {
    const follow = async (log: ReadLog) => {
      const added = this.#fleet.servers.followLog(log.reference, { at: log.at, signal });
      for await (const line of linesOf(added)) print(log, line);
    };
    await Promise.all(ends.map(async (log) => await this.#attempt(log.reference, async () => await follow(log))));
    signal.throwIfAborted();
    this.#throwFailure();
  }

  /** Runs `read`. With `all`, turns a FleetError into null and a warning. Warns once about each unreachable host. */
  async #attempt<T>(reference: string, read: () => Promise<T>): Promise<T | null> {
    try {
      return await read();
    } catch (error) {
      if (!this.#all || !isFleetError(error)) throw error;
      this.#failure ??= error;
      const { code, message } = error;
      const isHost = code === "FLEET_HOST_AWAY";
      const one = `The log of ${reference} is left out: ${message}`;
      this.#warn(isHost ? `${message} The logs of its servers are left out.` : one);
      return null;
    }
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  #warn(warning: string): void {
    if (this.#warned.has(warning)) return;
    this.#warned.add(warning);
    process.stderr.write(`Warning: ${printable(warning)}\n`);
  }
}
