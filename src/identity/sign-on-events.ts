import { actingAs } from "../events/acting.js";
import type { EventLog } from "../model/events/event.js";
import { type HostIdentity, type Identity, isHost } from "./identity.js";

/** How many refusals per minute get their own event. */
const ALONE = 20;
const MINUTE_MS = 60_000;
/**
 * How long to collect further refusals into one event, in milliseconds. Their clients get no answer before that event
 * is written.
 */
const TOGETHER_MS = 2_000;
/**
 * At an entry point where each request shows its credential: how often to record the same credential from the same
 * address, in milliseconds.
 */
const AGAIN_MS = 3_600_000;
const MOST_REMEMBERED = 10_000;
const MOST_ADDRESSES = 5;

interface Together {
  count: number;
  addresses: Set<string>;
  written: Promise<void>;
}

/**
 * Records the sign-ons at one entry point as events. Each event is on disk before the client gets its answer. Somebody
 * who tries many credentials cannot fill the disk, because only a few refusals per minute get their own event, and
 * further refusals share events.
 */
export class SignOnEvents {
  readonly #events: EventLog;
  readonly #via: "door" | "http";
  /** When the sign-on of each credential and address was last recorded, by `performance.now()`. */
  readonly #noted = new Map<string, number>();
  #minute = { sinceMs: Number.NEGATIVE_INFINITY, count: 0 };
  #together: Together | undefined;

  constructor(events: EventLog, via: "door" | "http") {
    this.#events = events;
    this.#via = via;
  }

  /** Records an accepted sign-on. @throws FleetError `FLEET_EVENTS_UNWRITABLE`: the client must not be admitted. */
  async accepted(identity: Identity | HostIdentity, address: string): Promise<void> {
    const { tokenId } = identity;
    const user = isHost(identity) ? null : identity.user;
    await this.#events.record({
      type: "signon.accepted",
      actor: { user, tokenId, via: this.#via },
      user,
      reason: isHost(identity) ? "host" : identity.via,
      detail: isHost(identity) ? `host ${identity.host}, from ${address}` : `from ${address}`,
    });
  }

  /**
   * Like {@link accepted}, but for an entry point where each request shows the credential. Records one sign-on per hour
   * for each credential and address.
   */
  async acceptedAgain(identity: Identity, address: string): Promise<void> {
    const key = `${identity.tokenId} ${address}`;
    const now = performance.now();
    const last = this.#noted.get(key);
    if (last !== undefined && now - last < AGAIN_MS) return;
    await this.accepted(identity, address);
    const [oldest] = this.#noted.keys();
    if (this.#noted.size >= MOST_REMEMBERED && oldest !== undefined) this.#noted.delete(oldest);
    this.#noted.set(key, now);
  }

  /**
   * Records a refusal. Never rejects, because the client is refused in any case.
   *
   * @param tokenId the id in the refused credential, if it looks like a token of the fleet
   */
  async refused(tokenId: string | undefined, address: string): Promise<void> {
    const now = performance.now();
    if (now - this.#minute.sinceMs > MINUTE_MS) this.#minute = { sinceMs: now, count: 0 };
    this.#minute.count += 1;
    if (this.#minute.count <= ALONE) await this.#record(tokenId ?? null, `from ${address}`);
    else await this.#share(address);
  }

  async #share(address: string): Promise<void> {
    this.#together ??= this.#begin();
    const together = this.#together;
    together.count += 1;
    if (together.addresses.size < MOST_ADDRESSES) together.addresses.add(address);
    await together.written;
  }

  #begin(): Together {
    const addresses = new Set<string>();
    const together: Together = { count: 0, addresses, written: Promise.resolve() };
    together.written = (async () => {
      await new Promise<void>((resolve) => void setTimeout(resolve, TOGETHER_MS).unref());
      this.#together = undefined;
      await this.#record(null, `${together.count} refusals, from ${[...addresses].join(", ")}`);
    })();
    return together;
  }

  async #record(tokenId: string | null, detail: string): Promise<void> {
    const actor = { user: null, tokenId, via: this.#via };
    const event = { type: "signon.refused", actor, outcome: "refused", reason: "FLEET_TOKEN_REFUSED", detail } as const;
    await this.#events.record(event).catch(() => "the log has warned");
  }
}

/** Runs work for a user who signed on, so that its events name the user and the token. */
export function actingFor<T>({ user, tokenId }: Identity, via: "door" | "http", work: () => T): T {
  return actingAs({ user, tokenId, via }, work);
}
