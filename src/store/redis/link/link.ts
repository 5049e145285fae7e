import type { Redis } from "ioredis";
import type { RedisUrl } from "../../../config/values/redis-url.js";
import { COMMON_KEYS, type Script } from "../scripts/scripts.js";
import { explain, explainOpening, Interruption } from "./failures.js";
import type { Surroundings } from "./surroundings.js";

/**
 * How long Redis may take for one answer, in milliseconds. A connection that died silently (a firewall dropped it, or
 * the host disappeared) looks the same as a slow server, so after this time we try a new connection.
 */
export const ANSWER_MS = 2_000;

type Answer = [word: string, ...rest: unknown[]];

/** One connection, from the handshake to the first failure. After a failure it is not repaired but replaced. */
export class Link {
  readonly #client: Redis;
  readonly #target: RedisUrl;
  readonly #where: string;
  readonly #channels = new Set<string>();
  /** The server's clock minus `performance.now()`, in milliseconds. Never too high; too low by less than one answer. */
  #clockMs = 0;

  private constructor(client: Redis, target: RedisUrl) {
    this.#client = client;
    this.#target = target;
    this.#where = placeOf(target);
  }

  /** Does not connect. */
  static async to(target: RedisUrl): Promise<Link> {
    return new Link(await makeClient(target), target);
  }

  /**
   * Connects, and in one round trip asks for the server's properties and for the epoch (`epochKey`).
   *
   * @param until the deadline, by `performance.now()`
   */
  async open(epochKey: string, until: number): Promise<[Surroundings, string | null]> {
    const client = this.#client;
    const errors: unknown[] = [];
    client.on("error", (error: unknown) => errors.push(error));
    const turnedAway = whetherTurnedAway(client);
    try {
      // When `connect()` fails, its error is always "closed", and only the error events have the reason. If the database is
      // unknown, it does not fail at all, and only an error event reports the fault.
      await within(client.connect(), until).catch((error: unknown) => Promise.reject(errors[0] ?? error));
      if (errors.length > 0) throw errors[0];
      const greeted = await within(this.#greet(epochKey), until);
      // If selecting the database failed only now, the requests above were sent to database 0.
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

  /** The server's time at `at` (`performance.now()`), in whole milliseconds since the epoch. */
  serverTime(at: number): number {
    return Math.floor(at + this.#clockMs);
  }

  /** @param serverMs the server's time now, in milliseconds since the epoch */
  setClock(serverMs: number): void {
    this.#clockMs = serverMs - performance.now();
  }

  async read(keys: readonly string[]): Promise<(string | null)[]> {
    return await this.#answered(this.#client.mget(...keys));
  }

  /** Reads a part of a set's members. The cursor of the next part is "0" after the last part. */
  async scan(set: string, cursor: string, count: number): Promise<[cursor: string, members: string[]]> {
    return await this.#answered(this.#client.sscan(set, cursor, "COUNT", count));
  }

  /** Subscribes to a channel until the connection ends. @returns false when it was already subscribed */
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
      // The server did not run the script, because it does not have it (or has dropped it).
      if (!(error instanceof Error && error.message.includes("NOSCRIPT"))) throw error;
      return (await this.#answered(this.#client.eval(script.lua, ...rest))) as Answer;
    }
  }

  /** Whether it keeps the process alive. A closed connection never does, and would collect listeners. */
  set held(held: boolean) {
    const { stream } = this.#client;
    if (stream === undefined || stream.destroyed) return;
    if (held) stream.ref();
    else stream.unref();
  }

  /** Closes the connection properly. Call it when nothing is under way. */
  async quit(until: number): Promise<void> {
    await within(this.#client.quit(), until).catch(() => "cut then");
    this.cut();
  }

  /**
   * Closes the connection at once, so that everything under way fails. ioredis's own `disconnect` waits for the server,
   * which may not answer, and keeps the process alive while it waits.
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

/** Resolves like `work`, whose outcome is ignored after `until`. @throws Interruption at that time. */
export async function within<T>(work: Promise<T>, until: number): Promise<T> {
  const ms = Math.max(0, until - performance.now());
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Interruption("no answer in time")), ms);
  });
  try {
    return await Promise.race([work, over]);
  } finally {
    clearTimeout(timer);
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
    // All scripts are short, so a command without an answer after this time may never get one.
    connectTimeout: ANSWER_MS,
    commandTimeout: ANSWER_MS,
    // Do not let ioredis queue or resend commands, or reconnect. It would resend a command with an unknown outcome,
    // perhaps to a server that has lost its data. `Connection` reconnects instead, and checks the server first.
    retryStrategy: null,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    // The handshake above reads INFO anyway.
    enableReadyCheck: false,
    disableClientInfo: true,
    connectionName: "copilotfleet",
    // With RESP2, a connection that subscribes to a channel can do nothing else.
    protocol: 3,
  });
}

/**
 * In protected mode, Redis sends a refusal to every client from another machine and closes the connection. ioredis
 * takes the refusal for the answer to its greeting and drops it. Its callers learn only that the connection failed.
 *
 * @returns a function that returns the refusal, if one has arrived.
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

/** Resolves with null where the server forbids the command (ACL, renamed commands). */
async function permitted<T>(answer: Promise<T>): Promise<T | null> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof Error && /^(?:NOPERM|ERR unknown command)/.test(error.message)) return null;
    throw error;
  }
}

/** The value in the answer to CONFIG GET, which is a pair of name and value. */
function secondOf(answer: unknown): string | null {
  return Array.isArray(answer) && typeof answer[1] === "string" ? answer[1] : null;
}
