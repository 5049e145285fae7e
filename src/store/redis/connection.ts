import { setTimeout as sleep } from "node:timers/promises";
import { type RedisUrl, showRedisUrl } from "../../config/redis-url.js";
import type { FleetError } from "../../errors.js";
import { EMPTY_REGISTRY } from "../registry-data.js";
import { SCHEMA } from "../store.js";
import type { Epoch } from "./epoch.js";
import { corruptError, Demotion, Interruption, unavailable } from "./failures.js";
import type { Keys } from "./keys.js";
import { ANSWER_MS, Link, placeOf } from "./link.js";
import type { Script } from "./scripts.js";
import { isReplica, judge } from "./surroundings.js";
import { within } from "./within.js";

/** How long one operation may take, connecting included, before Redis counts as unavailable. */
const OPERATION_MS = 5_000;
const LONGEST_PAUSE_MS = 200;

/** What the registry is before anything was written to it. */
export const FIRST_REGISTRY = `${SCHEMA} 0-0\n${EMPTY_REGISTRY}`;

const NO_REGISTRY = "its registry is gone";

export interface ConnectionOptions {
  target: RedisUrl;
  keys: Keys;
  epoch: Epoch;
  warn: (message: string) => void;
  /** Milliseconds; replaced in tests. */
  operationMs?: number;
}

/**
 * The way to the server: a {@link Link} at a time, opened by the first use and again after each that broke. Within its
 * time an operation is tried again after a failure, which is safe for all that goes through here: reads, and scripts that
 * notice that they ran already.
 *
 * It keeps the process alive only while somebody waits for an answer.
 */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly #where: string;
  readonly #operationMs: number;
  readonly #underWay = new Set<Promise<unknown>>();
  #link: Promise<Link> | undefined;
  #open: Link | undefined;
  /** The one that is being opened. */
  #opening: Link | undefined;
  #wasOpen = false;
  /** Whether one of them led to a server that is no replica. */
  #metPrimary = false;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#where = placeOf(options.target);
    this.#operationMs = options.operationMs ?? OPERATION_MS;
  }

  /** The database, for messages. */
  get database(): string {
    return showRedisUrl(this.#options.target);
  }

  /**
   * The values of keys, as they were at one moment, in a database that is still the same.
   *
   * @throws FleetError `FLEET_STORE_UNAVAILABLE`, `FLEET_STATE_LOST`, and what the handshake refuses.
   */
  async read(keys: readonly string[]): Promise<(string | null)[]> {
    return await this.#operate(async (link) => {
      const { epoch, keys: names } = this.#options;
      const { expected } = epoch;
      const [found = null, ...values] = await link.read([names.epoch, ...keys]);
      epoch.meet(found, expected);
      return values;
    });
  }

  /** The registry under this key; null if nothing was written to it. @throws as {@link read}. */
  async readRegistry(key: string): Promise<string | null> {
    return await this.#operate(async (link) => {
      const { epoch, keys } = this.#options;
      const { expected } = epoch;
      const [found = null, founding = null, registry = null] = await link.read([keys.epoch, keys.founding, key]);
      epoch.meet(found, expected);
      if (found === null && founding !== null) throw this.#orphan();
      if (found !== null && founding === null) throw epoch.lost(NO_REGISTRY);
      return registry;
    });
  }

  /** A part of a set's members, and the cursor of the next part, "0" after the last. Members may come twice. */
  async scan(set: string, cursor: string, count: number): Promise<[cursor: string, members: string[]]> {
    return await this.#operate((link) => link.scan(set, cursor, count));
  }

  /** Hears what is published on a channel, as long as the connection lasts. @returns whether it did not do so before. */
  async listen(channel: string, onMessage: (message: string) => void): Promise<boolean> {
    return await this.#operate((link) => link.listen(channel, onMessage));
  }

  /** Runs a script, whose own keys and arguments these are. Resolves with its answer. @throws as {@link read}. */
  async run(script: Script, keys: readonly string[], args: readonly (string | number)[]): Promise<unknown[]> {
    const { epoch, keys: names } = this.#options;
    return await this.#operate(async (link, until) => {
      const { expected, known } = epoch;
      const notAfter = link.serverTime(Math.min(until, performance.now() + ANSWER_MS));
      const common = [known ?? "", notAfter, epoch.fresh, FIRST_REGISTRY];
      const [word, ...rest] = await link.run(script, [names.epoch, names.founding, ...keys], [...common, ...args]);
      if (word === "late") {
        link.setClock(Number(rest[0]));
        return undefined;
      }
      if (word === "epoch") {
        epoch.meet(rest[0] === "" ? null : String(rest[0]), expected);
        return undefined;
      }
      if (word === "orphan") throw this.#orphan();
      if (word === "gone") throw epoch.lost(NO_REGISTRY);
      if (script.founds && known === undefined) epoch.meet(epoch.fresh, undefined);
      return [word, ...rest];
    });
  }

  /** Ends the connection when nothing is under way any more. Another use opens another one. */
  async close(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    const link = this.#open;
    this.#forget(link);
    await link?.quit(performance.now() + ANSWER_MS);
  }

  async #operate<T>(work: (link: Link, until: number) => Promise<T | undefined>): Promise<T> {
    const operation = this.#tryUntil(performance.now() + this.#operationMs, work);
    this.#underWay.add(operation);
    if (this.#open !== undefined) this.#open.held = true;
    try {
      return await operation;
    } finally {
      this.#underWay.delete(operation);
      if (this.#underWay.size === 0) {
        if (this.#open !== undefined) this.#open.held = false;
        // Nobody waits for it any more.
        this.#opening?.cut();
      }
    }
  }

  /** `work` gives undefined for another try. */
  async #tryUntil<T>(until: number, work: (link: Link, until: number) => Promise<T | undefined>): Promise<T> {
    let refusal: FleetError | undefined;
    for (let attempt = 0; ; attempt++) {
      let link: Link | undefined;
      try {
        link = await this.#linked(until);
        const result = await within(work(link, until), until);
        if (result !== undefined) return result;
      } catch (error) {
        if (!(error instanceof Interruption)) throw error;
        if (link !== undefined) this.#forget(link)?.cut();
        // A server that was never there is more likely a wrong address than one that is about to come back.
        if (error.nobody && !this.#wasOpen) throw unavailable(this.#where, error.message, error);
        if (error instanceof Demotion) {
          ({ refusal } = error);
          // One that was a replica from the first is no failover.
          if (!this.#metPrimary) throw refusal;
        }
        const pauseMs = Math.random() * Math.min(10 * 2 ** attempt, LONGEST_PAUSE_MS);
        if (performance.now() + pauseMs >= until) throw refusal ?? this.#late(error);
        await sleep(pauseMs);
      }
      if (performance.now() >= until) throw refusal ?? this.#late();
    }
  }

  /** The link there is, or a new one, which all who ask meanwhile share. */
  async #linked(until: number): Promise<Link> {
    this.#link ??= this.#connect();
    return await within(this.#link, until);
  }

  async #connect(): Promise<Link> {
    const { target, keys, epoch, warn } = this.#options;
    epoch.recall();
    const { expected } = epoch;
    try {
      const link = await Link.to(target);
      this.#opening = link;
      // Not until the end of whoever asked first: others share it.
      const [surroundings, found] = await link.open(keys.epoch, performance.now() + 2 * ANSWER_MS);
      try {
        for (const doubt of judge(surroundings, this.#where)) warn(doubt);
        epoch.meet(found, expected);
        if (!isReplica(surroundings)) this.#metPrimary = true;
      } catch (error) {
        link.cut();
        throw error;
      }
      this.#open = link;
      this.#wasOpen = true;
      link.held = this.#underWay.size > 0;
      return link;
    } catch (error) {
      this.#link = undefined;
      throw error;
    } finally {
      this.#opening = undefined;
    }
  }

  #late(error?: Interruption): Error {
    const last = error === undefined ? "" : ` (${error.message.replace(/\.$/, "")})`;
    return unavailable(this.#where, `not within ${this.#operationMs} ms${last}`, error);
  }

  #orphan(): Error {
    return corruptError(this.database, "it has a registry, and no epoch");
  }

  /** Lets go of a link, unless another one has taken its place already. */
  #forget(link: Link | undefined): Link | undefined {
    if (link === undefined || link !== this.#open) return undefined;
    this.#open = undefined;
    this.#link = undefined;
    return link;
  }
}
