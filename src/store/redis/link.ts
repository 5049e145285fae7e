import type { Redis } from "ioredis";
import type { RedisUrl } from "../../config/redis-url.js";
import { explain, explainOpening } from "./failures.js";
import { COMMON_KEYS, type Script } from "./scripts.js";
import type { Surroundings } from "./surroundings.js";
import { within } from "./within.js";

/**
 * How long Redis may take for one answer. A connection that has died without a word (a firewall forgot it, the host is
 * gone) looks just like that, so then another one is tried.
 */
export const ANSWER_MS = 2_000;

type Answer = [word: string, ...rest: unknown[]];

/** One connection, from the handshake to the first failure. It is never mended: another one is opened. */
export class Link {
  readonly #client: Redis;
  readonly #target: RedisUrl;
  readonly #where: string;
  readonly #channels = new Set<string>();
  /** The server's clock less ours (`performance.now()`), in milliseconds; at most the truth, by less than one answer takes. */
  #clockMs = 0;

  private constructor(client: Redis, target: RedisUrl) {
    this.#client = client;
    this.#target = target;
    this.#where = placeOf(target);
  }

  /** Not connected yet. */
  static async to(target: RedisUrl): Promise<Link> {
    return new Link(await makeClient(target), target);
  }

  /**
   * Connects and asks what the server is, and for the epoch (`epochKey`), in one round trip.
   *
   * @param until `performance.now()` at the latest.
   * @throws Interruption, FleetError.
   */
  async open(epochKey: string, until: number): Promise<[Surroundings, string | null]> {
    const client = this.#client;
    const errors: unknown[] = [];
    client.on("error", (error: unknown) => errors.push(error));
    const turnedAway = whetherTurnedAway(client);
    try {
      // Every failure of the connection is "closed" to it; the events say why. An unknown database comes as an event alone.
      await within(client.connect(), until).catch((error: unknown) => Promise.reject(errors[0] ?? error));
      if (errors.length > 0) throw errors[0];
      const greeted = await within(this.#greet(epochKey), until);
      // Or what was asked meanwhile was asked of database 0.
      if (errors.length > 0) throw errors[0];
      return greeted;
    } catch (error) {
      this.cut();
      throw explainOpening(turnedAway() ?? error, this.#target, this.#where);
    }
  }

  async #greet(epochKey: string): Promise<[Surroundings, string | null]> {
    const client = this.#client;
    const [time, epoch, info, save, appendOnly] = await Promise.all([
      client.time(),
      client.get(epochKey),
      // Managed services often forbid these.
      permitted(client.info()),
      permitted(client.config("GET", "save")),
      permitted(client.config("GET", "appendonly")),
    ]);
    this.setClock(Number(time[0]) * 1_000 + Math.floor(Number(time[1]) / 1_000));
    return [{ info, save: secondOf(save), appendOnly: secondOf(appendOnly) }, epoch];
  }

  /** The time of the server at `at` (`performance.now()`), in whole milliseconds since the epoch. */
  serverTime(at: number): number {
    return Math.floor(at + this.#clockMs);
  }

  /** @param serverMs What the server's clock just said. */
  setClock(serverMs: number): void {
    this.#clockMs = serverMs - performance.now();
  }

  /** Several keys, as they were at one moment. */
  async read(keys: readonly string[]): Promise<(string | null)[]> {
    return await this.#answered(this.#client.mget(...keys));
  }

  /** A part of a set's members, and the cursor of the next part, "0" after the last. Members may come twice. */
  async scan(set: string, cursor: string, count: number): Promise<[cursor: string, members: string[]]> {
    return await this.#answered(this.#client.sscan(set, cursor, "COUNT", count));
  }

  /** Hears what is published on a channel, from now to the end of the connection. @returns false when it does already. */
  async listen(channel: string, onMessage: (message: string) => void): Promise<boolean> {
    if (this.#channels.has(channel)) return false;
    this.#channels.add(channel);
    this.#client.on("message", (on: string, message: string) => {
      if (on === channel) onMessage(message);
    });
    await this.#answered(this.#client.subscribe(channel));
    return true;
  }

  async run(script: Script, keys: readonly string[], args: readonly (string | number)[]): Promise<Answer> {
    if (keys.length < COMMON_KEYS) throw new RangeError("a script's first keys are missing");
    const rest = [keys.length, ...keys, ...args] as const;
    try {
      return (await this.#answered(this.#client.evalsha(script.sha, ...rest))) as Answer;
    } catch (error) {
      // It was not run: the server does not have it, or no longer.
      if (!(error instanceof Error && error.message.includes("NOSCRIPT"))) throw error;
      return (await this.#answered(this.#client.eval(script.lua, ...rest))) as Answer;
    }
  }

  /** Whether the connection keeps the process alive. One that is closed does not, and would collect listeners. */
  set held(held: boolean) {
    const { stream } = this.#client;
    if (stream === undefined || stream.destroyed) return;
    if (held) stream.ref();
    else stream.unref();
  }

  /** Lets the server know. For when nothing is under way. */
  async quit(until: number): Promise<void> {
    await within(this.#client.quit(), until).catch(() => "cut then");
    this.cut();
  }

  /**
   * At once: what is under way fails. ioredis's own `disconnect` waits for the other side, which may be the one that does
   * not answer, and keeps the process alive for that.
   */
  cut(): void {
    const { stream } = this.#client;
    if (stream === undefined) this.#client.disconnect();
    else stream.destroy();
  }

  async #answered<T>(answer: Promise<T>): Promise<T> {
    try {
      return await answer;
    } catch (error) {
      throw explain(error, this.#where);
    }
  }
}

/** `host:port`, for messages. */
export function placeOf({ host, port }: RedisUrl): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

async function makeClient({ host, port, db, username, password, tls }: RedisUrl): Promise<Redis> {
  const { Redis } = await import("ioredis");
  return new Redis({
    host,
    port,
    db,
    ...(username === null ? {} : { username }),
    ...(password === null ? {} : { password }),
    ...(tls ? { tls: {} } : {}),
    lazyConnect: true,
    // No script takes long: what has no answer by then may never have one.
    connectTimeout: ANSWER_MS,
    commandTimeout: ANSWER_MS,
    // A command whose outcome is unknown must not be sent again behind our back, to a server that may have lost its data
    // meanwhile. So nothing is queued, resent or reconnected here: `Connection` does it, and looks first.
    retryStrategy: null,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    // The handshake above reads INFO anyway.
    enableReadyCheck: false,
    disableClientInfo: true,
    connectionName: "copilotfleet",
    // With RESP2 a connection that listens to a channel could do nothing else.
    protocol: 3,
  });
}

/**
 * A Redis in protected mode says so unasked to whoever comes from another machine, and hangs up. ioredis takes that for the
 * answer to its greeting and tells nobody; only that the connection has failed.
 *
 * @returns what gives the refusal, if it has come.
 */
function whetherTurnedAway(client: Redis): () => Error | undefined {
  let refusal: Error | undefined;
  client.once("connect", () => {
    client.stream.once("data", (bytes: Buffer) => {
      const [, sentence] = /^-(DENIED [^.\r\n]*)/.exec(bytes.toString()) ?? [];
      if (sentence !== undefined) refusal = Object.assign(new Error(sentence), { name: "ReplyError" });
    });
  });
  return () => refusal;
}

/** Null where the server's rules forbid it (ACL, renamed commands). */
async function permitted<T>(answer: Promise<T>): Promise<T | null> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof Error && /^(?:NOPERM|ERR unknown command)/.test(error.message)) return null;
    throw error;
  }
}

/** The value of CONFIG GET, which answers with name and value. */
function secondOf(answer: unknown): string | null {
  return Array.isArray(answer) && typeof answer[1] === "string" ? answer[1] : null;
}
