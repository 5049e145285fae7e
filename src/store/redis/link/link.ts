import type { Redis } from "ioredis";
import type { RedisUrl } from "../../../config/values/redis-url.js";
import { COMMON_KEYS, type Script } from "../scripts/scripts.js";
import { explain, explainOpening, Interruption } from "./failures.js";
import type { Surroundings } from "./surroundings.js";

/**
 * How long Redis may take for one answer, in milliseconds. After that, we try a new connection, because this one may be
 * dead.
 */
export const ANSWER_MS = 2_000;

type Answer = [word: string, ...rest: unknown[]];

/** One connection, from the handshake to the first failure. {@link Connection} then opens another one. */
export class Link {
  readonly #client: Redis;
  readonly #target: RedisUrl;
  readonly #where: string;
  readonly #channels = new Set<string>();
  /** The clock of Redis minus `performance.now()`, in milliseconds. May be too low by the duration of one answer. */
  #clockMs = 0;

  private constructor(client: Redis, target: RedisUrl) {
    this.#client = client;
    this.#target = target;
    this.#where = placeOf(target);
  }

  static async to(target: RedisUrl): Promise<Link> {
    return new Link(await makeClient(target), target);
  }

  /**
   * Connects. Resolves with the server's properties and the epoch.
   *
   * @param until the deadline, by `performance.now()`
   */
  async open(epochKey: string, until: number): Promise<[Surroundings, string | null]> {
    const client = this.#client;
    const errors: unknown[] = [];
    client.on("error", (error: unknown) => errors.push(error));
    const turnedAway = whetherTurnedAway(client);
    try {
      // If Redis has no database with that number, `connect()` rejects without the reason, or even resolves. The error
      // events have the reason.
      await within(client.connect(), until).catch((error: unknown) => Promise.reject(errors[0] ?? error));
      if (errors.length > 0) throw errors[0];
      const greeted = await within(this.#greet(epochKey), until);
      // If selecting the database failed only now, the answers above came from database 0.
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
      // Managed services often forbid the next three commands.
      permitted(client.info()),
      permitted(client.config("GET", "save")),
      permitted(client.config("GET", "appendonly")),
    ]);
    this.setClock(Number(time[0]) * 1_000 + Math.floor(Number(time[1]) / 1_000));
    return [{ info, save: secondOf(save), appendOnly: secondOf(appendOnly) }, epoch];
  }

  /** Converts a time of `performance.now()` to the same time of the clock of Redis, in milliseconds since the epoch. */
  serverTime(at: number): number {
    return Math.floor(at + this.#clockMs);
  }

  /** @param serverMs the time of Redis now, in milliseconds since the epoch */
  setClock(serverMs: number): void {
    this.#clockMs = serverMs - performance.now();
  }

  async read(keys: readonly string[]): Promise<(string | null)[]> {
    return await this.#answered(this.#client.mget(...keys));
  }

  /** Reads some members of a set, and the cursor for the next members. The cursor is "0" after the last members. */
  async scan(set: string, cursor: string, count: number): Promise<[cursor: string, members: string[]]> {
    return await this.#answered(this.#client.sscan(set, cursor, "COUNT", count));
  }

  /** Subscribes to a channel until the connection ends. @returns false if this link was already subscribed to the channel */
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
      // NOSCRIPT: Redis has not stored the script with this hash, and ran nothing. So send the whole script.
      if (!(error instanceof Error && error.message.includes("NOSCRIPT"))) throw error;
      return (await this.#answered(this.#client.eval(script.lua, ...rest))) as Answer;
    }
  }

  /** Whether the connection keeps the process alive. */
  set held(held: boolean) {
    const { stream } = this.#client;
    if (stream === undefined || stream.destroyed) return;
    if (held) stream.ref();
    else stream.unref();
  }

  /** Closes the connection properly. Call this when no operation is under way. */
  async quit(until: number): Promise<void> {
    await within(this.#client.quit(), until).catch(() => "cut then");
    this.cut();
  }

  /**
   * Closes the connection at once, so that all operations under way fail. The library's own `disconnect` waits for the
   * server, which may not answer.
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

/** Resolves like `work`. @throws Interruption when `work` has not ended at the time `until`. */
export async function within<T>(work: Promise<T>, until: number): Promise<T> {
  const ms = Math.max(0, until - performance.now());
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<never>((_, reject) => {
    // Read the socket once more before giving up. On a busy machine, the answer may have arrived while this process could not
    // run, and Node.js runs due timers before it reads sockets.
    timer = setTimeout(() => setImmediate(() => reject(new Interruption("no answer in time"))), ms);
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
    connectTimeout: ANSWER_MS,
    commandTimeout: ANSWER_MS,
    // Do not let the library reconnect and send commands again. It might send a command twice, or to a server that has
    // lost its data. `Connection` reconnects instead, and checks the server first.
    retryStrategy: null,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    // `#greet` reads INFO, so the library need not do it.
    enableReadyCheck: false,
    disableClientInfo: true,
    connectionName: "copilotfleet",
    // With the older protocol 2, a connection that subscribes to a channel can do nothing else.
    protocol: 3,
  });
}

/**
 * In protected mode, Redis sends a refusal to every client from another machine and closes the connection. The library
 * discards the refusal and reports only that the connection failed.
 *
 * @returns a function that returns the refusal, if one has arrived
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

/** Resolves with null if the server forbids the command. */
async function permitted<T>(answer: Promise<T>): Promise<T | null> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof Error && /^(?:NOPERM|ERR unknown command)/.test(error.message)) return null;
    throw error;
  }
}

/** The value in an answer to CONFIG GET, which is a pair of name and value; null if the answer has another form. */
function secondOf(answer: unknown): string | null {
  return Array.isArray(answer) && typeof answer[1] === "string" ? answer[1] : null;
}
