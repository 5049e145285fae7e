import { setTimeout as sleep } from "node:timers/promises";
import { type RedisUrl, showRedisUrl } from "../../../config/values/redis-url.js";
import type { FleetError } from "../../../errors.js";
import { SCHEMA } from "../../../model/registry.js";
import { EMPTY_REGISTRY } from "../../registry-data.js";
import type { Script } from "../scripts/scripts.js";
import type { Signer } from "../signatures/signer.js";
import type { Epoch } from "./epoch.js";
import { corruptError, Demotion, Interruption, unavailable } from "./failures.js";
import type { Keys } from "./keys.js";
import { ANSWER_MS, Link, placeOf, within } from "./link.js";
import { isReplica, judge } from "./surroundings.js";

/** How long one operation may take, including the time to connect, before Redis counts as unavailable. In milliseconds. */
const OPERATION_MS = 5_000;
const LONGEST_PAUSE_MS = 200;

export const FIRST_REGISTRY = `${SCHEMA} 0-0\n${EMPTY_REGISTRY}`;

const NO_REGISTRY = "its registry is gone";

export interface ConnectionOptions {
  target: RedisUrl;
  keys: Keys;
  epoch: Epoch;
  signer: Signer;
  warn: (message: string) => void;
  /** How long one operation may take, in milliseconds. Tests set it. */
  operationMs: number | undefined;
}

/**
 * Access to the Redis server over one {@link Link} at a time. An operation opens a link if there is none. An operation
 * that is interrupted runs again until its time is up. So pass only reads, and scripts that may run twice.
 *
 * The connection keeps the process alive only while somebody waits for an answer.
 */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly #where: string;
  readonly #operationMs: number;
  readonly #underWay = new Set<Promise<unknown>>();
  #link: Promise<Link> | undefined;
  #open: Link | undefined;
  #opening: Link | undefined;
  #wasOpen = false;
  /** Whether any link so far connected to a server that is not a replica. */
  #metPrimary = false;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#where = placeOf(options.target);
    this.#operationMs = options.operationMs ?? OPERATION_MS;
  }

  /** The URL without secrets, for messages. */
  get database(): string {
    return showRedisUrl(this.#options.target);
  }

  /** Reads several keys as they are at one moment, and verifies the epoch. */
  async read(keys: readonly string[]): Promise<(string | null)[]> {
    return await this.#operate(async (link) => {
      const { epoch, keys: names } = this.#options;
      const { expected } = epoch;
      const [found = null, ...values] = await link.read([names.epoch, ...keys]);
      epoch.meet(found, expected);
      return values;
    });
  }

  /** Reads the registry under this key. Null if it was never written. */
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

  /** Yields the members of a set, about `atOnce` at a time. A member may appear twice. */
  async *membersOf(set: string, atOnce: number): AsyncGenerator<string[]> {
    let cursor = "0";
    do {
      const [next, members] = await this.#operate((link) => link.scan(set, cursor, atOnce));
      yield members;
      cursor = next;
    } while (cursor !== "0");
  }

  /** See {@link Link.listen}. */
  async listen(channel: string, onMessage: (message: string) => void): Promise<boolean> {
    return await this.#operate((link) => link.listen(channel, onMessage));
  }

  /** Runs a script. Appends `keys` and `args` to the keys and arguments that all scripts have. */
  async run(script: Script, keys: readonly string[], args: readonly (string | number)[]): Promise<unknown[]> {
    const { epoch, keys: names, signer } = this.#options;
    return await this.#operate(async (link, until) => {
      const { expected, known } = epoch;
      if (script.founds && known === undefined) signer.ensureKey();
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

  /** Closes the connection once no operation is under way. The next operation opens a new connection. */
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
        // No operation needs the link that is being opened any longer, so abort it.
        this.#opening?.cut();
      }
    }
  }

  /** Runs `work` until it returns a value other than undefined, or until the time is up. */
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
        // If no link was ever open, the address is probably wrong, so do not try again.
        if (error.nobody && !this.#wasOpen) throw unavailable(this.#where, error.message, error);
        if (error instanceof Demotion) {
          ({ refusal } = error);
          // If no link so far reached a primary, this is not a failover, and trying again does not help.
          if (!this.#metPrimary) throw refusal;
        }
        const pauseMs = Math.random() * Math.min(10 * 2 ** attempt, LONGEST_PAUSE_MS);
        if (performance.now() + pauseMs >= until) throw refusal ?? this.#late(error);
        await sleep(pauseMs);
      }
      if (performance.now() >= until) throw refusal ?? this.#late();
    }
  }

  /** Returns the open link, or opens one. All operations share it. */
  async #linked(until: number): Promise<Link> {
    this.#link ??= this.#connect();
    return await within(this.#link, until);
  }

  async #connect(): Promise<Link> {
    const { target, keys, epoch, signer, warn } = this.#options;
    epoch.recall();
    const { expected } = epoch;
    try {
      const link = await Link.to(target);
      this.#opening = link;
      // Do not use the deadline of the first operation, because other operations share this link.
      const [surroundings, found] = await link.open(keys.epoch, performance.now() + 2 * ANSWER_MS);
      try {
        for (const doubt of judge(surroundings, this.#where)) warn(doubt);
        epoch.meet(found, expected);
        signer.assertKey({ isEmpty: found === null });
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
    return unavailable(this.#where, `no answer within ${this.#operationMs} ms${last}`, error);
  }

  #orphan(): Error {
    return corruptError(this.database, "it has a registry, but no epoch");
  }

  /** Forgets a link, unless a newer link has already replaced it. */
  #forget(link: Link | undefined): Link | undefined {
    if (link === undefined || link !== this.#open) return undefined;
    this.#open = undefined;
    this.#link = undefined;
    return link;
  }
}
