import type { LookupAddress } from "node:dns";
import { lookup } from "node:dns/promises";
import { connect, isIP, type Socket } from "node:net";
import { abortable } from "../../base/clock.js";
import { asciiName } from "../../base/values/network.js";
import type { ServerRules } from "./addresses.js";

/**
 * How a request for a connection ended. `refused`: no entry of `sandbox.allow` allows it. `blocked`: its host name
 * leads only to blocked addresses. `limited`: the server already has too many connections or look-ups. `failed`: any
 * other reason.
 */
export const EGRESS_RESULTS = ["allowed", "refused", "blocked", "failed", "limited"] as const;
export type EgressResult = (typeof EGRESS_RESULTS)[number];

/** The refusal of a request for a connection. `message` is for the agent, and `detail` for the operator. */
export class Refusal extends Error {
  override readonly name = "Refusal";

  constructor(
    readonly result: Exclude<EgressResult, "allowed">,
    readonly status: number,
    message: string,
    readonly detail = message,
  ) {
    super(message);
  }
}

export interface Target {
  /** An address, or a name in the form of {@link asciiName}. */
  host: string;
  port: number;
}

/** Reads `host:port`. @throws Refusal for any other text, such as an address in the form `0x7f.1` */
export function readTarget(text: string): Target {
  const [, bracketed, plain = "", digits] = /^(?:\[([^\]]*)\]|([^:[\]]+)):([1-9]\d{0,4})$/.exec(text) ?? [];
  const port = Number(digits);
  const given = bracketed ?? plain;
  const isAddress = isIP(given) === (bracketed === undefined ? 4 : 6) && !given.includes("%");
  const host = isAddress ? given.toLowerCase() : bracketed === undefined ? asciiName(given) : null;
  if (host !== null && port <= 65_535) return { host, port };
  throw new Refusal("refused", 400, "The proxy of the sandbox needs a name or an address, and a port.");
}

/** Resolves with the addresses of a name. */
export type Lookup = (name: string) => Promise<readonly string[]>;

const lookUp: Lookup = async (name) => (await lookup(name, { all: true })).map(({ address }) => address);

/**
 * How many look-ups of one server may run at once. A look-up may occupy a thread of the process for many seconds, and
 * one server must not occupy all threads.
 */
const MOST_LOOKUPS = 4;

/** How many names one server may look up at once, including those that wait for a running look-up to end. */
const MOST_NAMES = 256;

interface Search {
  readonly found: Promise<readonly string[]>;
  readonly begin: (found: Promise<readonly string[]>) => void;
  isRunning: boolean;
  /** How many requests wait for this look-up. */
  requests: number;
}

/** The look-ups of one server. */
export class Lookups {
  readonly #lookUp: Lookup;
  readonly #onIdle: () => void;
  readonly #searches = new Map<string, Search>();
  #running = 0;

  constructor(custom: Lookup = lookUp, onIdle: () => void = () => undefined) {
    this.#lookUp = custom;
    this.#onIdle = onIdle;
  }

  get isIdle(): boolean {
    return this.#searches.size === 0;
  }

  /**
   * Looks up the addresses of a name. Callers that ask for the same name share one look-up.
   *
   * @param signal aborts when the caller no longer waits. The promise might then never settle.
   */
  async find(name: string, signal: AbortSignal): Promise<readonly string[]> {
    const search = this.#searches.get(name) ?? this.#add(name);
    search.requests++;
    const leave = () => {
      search.requests--;
      if (search.requests === 0 && !search.isRunning) this.#remove(name);
    };
    signal.addEventListener("abort", leave, { once: true });
    try {
      return await search.found;
    } finally {
      signal.removeEventListener("abort", leave);
    }
  }

  #add(name: string): Search {
    if (this.#searches.size >= MOST_NAMES) {
      throw new Refusal("limited", 503, `This server looks up ${MOST_NAMES} names, and may look up no more.`);
    }
    let begin: Search["begin"] = () => undefined;
    const found = new Promise<readonly string[]>((resolve) => (begin = resolve));
    const search = { found, begin, isRunning: false, requests: 0 };
    this.#searches.set(name, search);
    this.#beginNext();
    return search;
  }

  #remove(name: string): void {
    this.#searches.delete(name);
    this.#beginNext();
    if (this.isIdle) this.#onIdle();
  }

  #beginNext(): void {
    for (const [name, search] of this.#searches) {
      if (this.#running >= MOST_LOOKUPS) return;
      if (search.isRunning) continue;
      search.isRunning = true;
      this.#running++;
      search.begin(
        this.#lookUp(name).finally(() => {
          this.#running--;
          this.#remove(name);
        }),
      );
    }
  }
}

/**
 * Opens a connection for a server. Looks a name up only once, and connects only to allowed addresses from that look-up,
 * because a second look-up may return other addresses.
 *
 * @param signal aborts with a {@link Refusal} when nobody waits for the connection any more
 * @throws Refusal
 */
export async function connectTo(
  target: Target,
  rules: ServerRules,
  lookups: Lookups,
  signal: AbortSignal,
): Promise<Socket> {
  const addresses = await abortable(allowedAddresses(target, rules, lookups, signal), signal);
  return await abortable(open(target, addresses, signal), signal);
}

async function allowedAddresses(
  { host, port }: Target,
  rules: ServerRules,
  lookups: Lookups,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const isAddress = isIP(host) !== 0;
  if (isAddress ? !rules.allowsAddress(host, port) : !rules.allowsName(host, port)) {
    const entry = `${isIP(host) === 6 && port !== 443 ? `[${host}]` : host}${port === 443 ? "" : `:${port}`}`;
    const problem = `The sandbox of this server allows no connection to ${host} at port ${port}.`;
    throw new Refusal(
      "refused",
      403,
      `${problem} The operator can allow it with "${entry}" in sandbox.allow.`,
      problem,
    );
  }
  if (isAddress) return [host];
  const found = await lookups.find(host, signal).catch((error: Error) => {
    if (error instanceof Refusal) throw error;
    throw new Refusal("failed", 502, `${host} was not found.`, error.message);
  });
  const allowed = found.filter((address) => rules.mayLeadTo(address, port));
  if (allowed.length > 0) return allowed;
  const problem = `${host} leads to a private or reserved address, which the sandbox of this server blocks.`;
  const advice = "The operator can allow it with that address in sandbox.allow.";
  throw new Refusal("blocked", 403, `${problem} ${advice}`, `${host} leads to ${found.slice(0, 4).join(", ")}`);
}

/** How long to try one address before the next one, in milliseconds. */
const NEXT_ADDRESS_MS = 1_000;

async function open({ host, port }: Target, addresses: readonly string[], signal: AbortSignal): Promise<Socket> {
  return await new Promise((resolve, reject) => {
    const all: LookupAddress[] = addresses.map((address) => ({ address, family: isIP(address) }));
    const socket = connect({
      host,
      port,
      signal,
      allowHalfOpen: true,
      noDelay: true,
      autoSelectFamily: true,
      autoSelectFamilyAttemptTimeout: NEXT_ADDRESS_MS,
      lookup: (_name, _options, done) => (done as unknown as (error: null, all: LookupAddress[]) => void)(null, all),
    });
    socket.once("connect", () => resolve(socket));
    socket.on("error", (error: NodeJS.ErrnoException) => {
      const why = error.code ?? error.message;
      reject(new Refusal("failed", 502, `${host} at port ${port} did not answer (${why}).`));
    });
  });
}
