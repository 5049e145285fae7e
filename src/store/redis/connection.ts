import { setTimeout as sleep } from "node:timers/promises";
import type { Redis } from "ioredis";
import { FleetError } from "../../base/errors.js";
import { type RedisUrl, showRedisUrl } from "../../base/values/network.js";
import { readSecret, type SecretKind } from "../../config/secret.js";
import type { StoreSecrets } from "../store.js";
import type { Epoch } from "./epoch.js";
import { cli, Demotion, explain, explainOpening, Interruption, unavailable } from "./failures.js";
import type { Script } from "./scripts.js";
import type { Signer } from "./signatures.js";

/**
 * How long one operation may take, including the time to connect, before Redis counts as unavailable. In milliseconds.
 */
const OPERATION_MS = 5_000;
const LONGEST_PAUSE_MS = 200;
const PASSWORD: SecretKind = { word: "password", code: "FLEET_CONFIG_INVALID" };

interface ConnectionOptions {
  target: RedisUrl;
  /** The key of the epoch. */
  epochKey: string;
  epoch: Epoch;
  signer: Signer;
  secrets: StoreSecrets;
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
      const { epoch, epochKey } = this.#options;
      const { expected } = epoch;
      const [found = null, ...values] = await link.read([epochKey, ...keys]);
      epoch.meet(found, expected);
      return values;
    });
  }

  /** Runs a script. Appends `keys` and `args` to the keys and arguments that all scripts have. */
  async run(script: Script, keys: readonly string[], args: readonly (string | number)[]): Promise<unknown[]> {
    const { epoch, epochKey, signer } = this.#options;
    return await this.#operate(async (link, until) => {
      const { expected, known } = epoch;
      if (script.founds && known === undefined) signer.ensureKey();
      const notAfter = link.serverTime(Math.min(until, performance.now() + ANSWER_MS));
      const common = [known ?? "", notAfter, epoch.fresh];
      const [word, ...rest] = await link.run(script, [epochKey, ...keys], [...common, ...args]);
      if (word === "late") {
        link.setClock(Number(rest[0]));
        return undefined;
      }
      if (word === "epoch") {
        epoch.meet(rest[0] === "" ? null : String(rest[0]), expected);
        return undefined;
      }
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
    const { target, epochKey, epoch, signer, secrets, warn } = this.#options;
    epoch.recall();
    const { expected } = epoch;
    try {
      const { password, env } = secrets;
      await signer.load(env);
      const link = await Link.to(target, password === null ? null : await readSecret(password, PASSWORD, { env }));
      this.#opening = link;
      // Do not use the deadline of the first operation, because other operations share this link.
      const [surroundings, found] = await link.open(epochKey, performance.now() + 2 * ANSWER_MS);
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

  /** Forgets a link, unless a newer link has already replaced it. */
  #forget(link: Link | undefined): Link | undefined {
    if (link === undefined || link !== this.#open) return undefined;
    this.#open = undefined;
    this.#link = undefined;
    return link;
  }
}

/**
 * How long Redis may take for one answer, in milliseconds. After that, we try a new connection, because this one may be
 * dead.
 */
const ANSWER_MS = 2_000;

type Answer = [word: string, ...rest: unknown[]];

/** One connection, from the handshake to the first failure. {@link Connection} then opens another one. */
class Link {
  readonly #client: Redis;
  readonly #target: RedisUrl;
  readonly #where: string;
  /** The clock of Redis minus `performance.now()`, in milliseconds. May be too low by the duration of one answer. */
  #clockMs = 0;

  private constructor(client: Redis, target: RedisUrl) {
    this.#client = client;
    this.#target = target;
    this.#where = placeOf(target);
  }

  static async to(target: RedisUrl, password: string | null): Promise<Link> {
    return new Link(await makeClient(target, password), target);
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

  async run(script: Script, keys: readonly string[], args: readonly (string | number)[]): Promise<Answer> {
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
    // Read the socket once more before giving up. On a busy machine, the answer may have arrived while this process
    // could not run, and Node.js runs due timers before it reads sockets.
    timer = setTimeout(() => setImmediate(() => reject(new Interruption("no answer in time"))), ms);
  });
  try {
    return await Promise.race([work, over]);
  } finally {
    clearTimeout(timer);
  }
}

/** `host:port`, for messages. */
function placeOf({ host, port }: RedisUrl): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

async function makeClient({ host, port, db, username, tls }: RedisUrl, password: string | null): Promise<Redis> {
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

/** Some properties of the Redis server. A field is null if the server forbids the command that reads it. */
export interface Surroundings {
  info: string | null;
  save: string | null;
  appendOnly: string | null;
}

/** The first version of Redis that has all features that we use. */
const OLDEST = [6, 2] as const;

/**
 * Decides whether a Redis can be trusted with the state.
 *
 * @returns warnings, each as a sentence
 * @throws FleetError `FLEET_STORE_UNUSABLE` when the server is too old, or evicts keys when its memory is full.
 * @throws Interruption while the server loads its data.
 */
export function judge({ info, save, appendOnly }: Surroundings, where: string): string[] {
  if (info === null) {
    return [
      `Redis at ${where} does not show its settings, because INFO is forbidden. Make sure that it never evicts keys.`,
    ];
  }
  const facts = parseInfo(info);
  if (facts.get("loading") === "1") throw new Interruption("it is loading its data");
  refuseOld(facts.get("redis_version"), where);
  refuseEviction(facts.get("maxmemory_policy"), where);
  const warnings: string[] = [];
  if (facts.get("role") === "slave") {
    warnings.push(`Redis at ${where} is a replica, so its data may be old, and it takes no writes.`);
  } else if (Number(facts.get("connected_slaves") ?? 0) > 0) {
    warnings.push(
      `Redis at ${where} has replicas. A failover loses everything that the replica has not received yet, including acknowledged changes and leases.`,
    );
  }
  if (facts.get("cluster_enabled") === "1") {
    warnings.push(
      `Redis at ${where} is part of a cluster: moving the fleet's slot to another node interrupts the fleet.`,
    );
  }
  if (appendOnly === "no" && save === "") {
    warnings.push(
      `Redis at ${where} keeps nothing on disk (appendonly no, save ""), so a restart loses all state. To fix this: ${cli(where)} CONFIG SET appendonly yes`,
    );
  }
  return warnings;
}

function isReplica({ info }: Surroundings): boolean {
  return info !== null && parseInfo(info).get("role") === "slave";
}

function parseInfo(info: string): Map<string, string> {
  return new Map(
    info.split(/\r?\n/).flatMap((line) => {
      const at = line.indexOf(":");
      return at === -1 || line.startsWith("#") ? [] : [[line.slice(0, at), line.slice(at + 1)] as const];
    }),
  );
}

function refuseOld(version: string | undefined, where: string): void {
  const [major = 0, minor = 0] = (version ?? "").split(".").map(Number);
  if (version === undefined || major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])) return;
  const what = `Redis at ${where} is version ${version}: ${OLDEST.join(".")} or later is needed.`;
  throw new FleetError("FLEET_STORE_UNUSABLE", what, { suggestions: [`Install Redis ${OLDEST.join(".")} or later.`] });
}

function refuseEviction(policy: string | undefined, where: string): void {
  if (policy === undefined || policy === "noeviction") return;
  const what = `Redis at ${where} evicts keys when its memory is full (maxmemory-policy ${policy}): it would forget servers, sessions and leases.`;
  throw new FleetError("FLEET_STORE_UNUSABLE", what, {
    suggestions: [
      `${cli(where)} CONFIG SET maxmemory-policy noeviction`,
      "Set maxmemory-policy in redis.conf too, or the old value is back after a restart. Use a separate Redis for caches.",
    ],
  });
}
