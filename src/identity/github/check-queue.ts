import type { Clock } from "../../runtime/clock.js";

/** How many tokens may be checked at the same time, so that strangers cannot make the fleet flood GitHub. */
export const MOST_CHECKS = 64;
/**
 * How many checks may wait. A front door limits the number of connections without a good token. Checks may take up at
 * most half of this number. All checks of this queue, running or waiting, fit into that half.
 */
export const MOST_WAITING = 512;
/**
 * How long a check may wait, in milliseconds. After this time, the front door closes a connection without a good token
 * anyway.
 */
const LONGEST_WAIT_MS = 10_000;

interface Waiting {
  sinceMs: number;
  /** Called once. With false, the check never runs. */
  settle(mayRun: boolean): void;
}

/**
 * Runs a bounded number of checks at once, and lets further checks wait. Serves the networks of the clients in
 * rotation, so that a stranger with many made-up tokens hardly delays anybody else. If too many checks wait, drops the
 * newest check of the network with the most waiting checks.
 */
export class CheckQueue {
  readonly #clock: Pick<Clock, "now">;
  /** The checks that run before all others, because their tokens were good before. */
  readonly #first: Waiting[] = [];
  /** The other waiting checks, by network. The first network is served next, and then moves to the end. */
  readonly #networks = new Map<string, Waiting[]>();
  #waiting = 0;
  #running = 0;

  constructor(clock: Pick<Clock, "now">) {
    this.#clock = clock;
  }

  /** Whether the next check has to wait. */
  get isFull(): boolean {
    return this.#running >= MOST_CHECKS;
  }

  /**
   * Runs a check when it is its turn. Resolves with null if too many checks wait, or if this check has waited too long.
   *
   * @param address the address of the client that shows the token. Null if the token was good before: its check then
   * precedes those of all addresses
   */
  async run<T>(address: string | null, check: () => Promise<T>): Promise<T | null> {
    if (!this.isFull) this.#running++;
    else if (!(await this.#turn(address))) return null;
    try {
      return await check();
    } finally {
      this.#running--;
      this.#passOn();
    }
  }

  async #turn(address: string | null): Promise<boolean> {
    return await new Promise<boolean>((settle) => {
      this.#laneOf(address).push({ sinceMs: this.#clock.now(), settle });
      this.#waiting++;
      if (this.#waiting <= MOST_WAITING) return;
      let longest = this.#first;
      for (const lane of this.#networks.values()) {
        if (longest === this.#first || lane.length > longest.length) longest = lane;
      }
      this.#waiting--;
      longest.pop()?.settle(false);
    });
  }

  #laneOf(address: string | null): Waiting[] {
    if (address === null) return this.#first;
    const network = networkOf(address);
    const lane = this.#networks.get(network) ?? [];
    this.#networks.set(network, lane);
    return lane;
  }

  /** Lets the next check run, and drops the checks that have waited too long. */
  #passOn(): void {
    for (let next = this.#take(); next !== undefined; next = this.#take()) {
      const isInTime = this.#clock.now() - next.sinceMs < LONGEST_WAIT_MS;
      if (isInTime) this.#running++;
      next.settle(isInTime);
      if (isInTime) return;
    }
  }

  #take(): Waiting | undefined {
    let found = this.#first.shift();
    for (const [network, lane] of this.#networks) {
      if (found !== undefined) break;
      found = lane.shift();
      this.#networks.delete(network);
      if (lane.length > 0) this.#networks.set(network, lane);
    }
    if (found !== undefined) this.#waiting--;
    return found;
  }
}

/**
 * The network that one stranger usually controls: a single IPv4 address, or an IPv6 network with a prefix of 64 bits.
 */
function networkOf(address: string): string {
  const [head = "", tail] = address.split("::");
  const groups = head === "" ? [] : head.split(":");
  if (!address.includes(":") || address.includes(".")) return address;
  if (tail !== undefined) groups.push(...Array.from({ length: 8 - groups.length }, () => "0"));
  return groups.slice(0, 4).join(":");
}
