import { isFleetError } from "../../base/errors.js";
import { assertSessionId } from "../../base/ids.js";
import { type Lease, type LeaseAnswer, type LeaseRequest, notHeld } from "../../base/session.js";
import { hashToken, isSameHash } from "../../base/token.js";
import { printable } from "../../base/values/text.js";
import type { LeaseStore } from "../ports.js";
import type { Connection } from "./connection.js";
import { COMMIT_KEY_MS, newId } from "./documents.js";
import { corruptError, type Keys } from "./failures.js";
import { ACQUIRE, LEAVE, LOOK, RAISE, RELEASE, RENEW } from "./scripts.js";

/** Leases that end by Redis's own clock. Each step is one script. */
export class RedisLeases implements LeaseStore {
  readonly #connection: Connection;
  readonly #keys: Keys;

  constructor(connection: Connection, keys: Keys) {
    this.#connection = connection;
    this.#keys = keys;
  }

  async acquire(request: LeaseRequest): Promise<LeaseAnswer> {
    const { sessionId, holder, token, ttlMs, placeMs, steal, detached } = request;
    assertSessionId(sessionId);
    const keys = this.#keys;
    const { word, lease, ahead } = await this.#ask(
      sessionId,
      ACQUIRE,
      [keys.fence, keys.lease(sessionId), keys.queue(sessionId), keys.places(sessionId)],
      [hashToken(token), holder, ttlMs, placeMs, bit(steal), steal?.reason ?? "", bit(detached)],
    );
    if (word !== "granted") return { granted: false, lease, ahead };
    // The answer may have taken longer than the lease lasts.
    return isLeft(lease) ? { granted: true, lease } : { granted: false, lease: null, ahead: 0 };
  }

  async leave(sessionId: string, token: string): Promise<void> {
    assertSessionId(sessionId);
    const keys = [this.#keys.queue(sessionId), this.#keys.places(sessionId)];
    try {
      await this.#connection.run(LEAVE, keys, [hashToken(token)]);
    } catch (error) {
      // If Redis lost all data, the queue was lost too, so there is nothing to leave.
      if (!isFleetError(error, "FLEET_STATE_LOST")) throw error;
    }
  }

  async renew(sessionId: string, token: string, ttlMs: number): Promise<Lease> {
    return await this.#ofHolder(sessionId, async () => {
      const { lease } = await this.#ask(sessionId, RENEW, [this.#keys.lease(sessionId)], [hashToken(token), ttlMs]);
      return isLeft(lease) ? lease : null;
    });
  }

  async release(sessionId: string, token: string): Promise<void> {
    await this.#ofHolder(sessionId, async () => {
      const keys = [this.#keys.lease(sessionId), this.#keys.commit(newId())];
      const [word] = await this.#connection.run(RELEASE, keys, [hashToken(token), COMMIT_KEY_MS]);
      return word === "ok" ? word : null;
    });
  }

  async read(sessionId: string): Promise<Lease | null> {
    assertSessionId(sessionId);
    return (await this.#ask(sessionId, LOOK, [this.#keys.lease(sessionId)], [])).lease;
  }

  async check(sessionId: string, token: string): Promise<Lease> {
    return await this.#ofHolder(sessionId, async () => {
      const { lease, tokenHash } = await this.#ask(sessionId, LOOK, [this.#keys.lease(sessionId)], []);
      return isLeft(lease) && isSameHash(tokenHash, hashToken(token)) ? lease : null;
    });
  }

  async highestFence(): Promise<number> {
    const [fence = null] = await this.#connection.read([this.#keys.fence]);
    return Number(fence ?? 0);
  }

  async raiseFences(above: number): Promise<void> {
    await this.#connection.run(RAISE, [this.#keys.fence], [above]);
  }

  /**
   * Runs a step for a caller that claims to hold the lease. The lease counts as lost if `work` returns null, or if
   * Redis has lost its data.
   */
  async #ofHolder<T>(sessionId: string, work: () => Promise<T | null>): Promise<T> {
    assertSessionId(sessionId);
    let result: T | null;
    try {
      result = await work();
    } catch (error) {
      if (isFleetError(error, "FLEET_STATE_LOST")) throw notHeld(sessionId, error);
      throw error;
    }
    if (result === null) throw notHeld(sessionId);
    return result;
  }

  /** Runs a script of lease-scripts.ts, and parses its answer. `lease` is the lease in force, or null. */
  async #ask(
    sessionId: string,
    script: typeof ACQUIRE,
    keys: readonly string[],
    args: readonly (string | number)[],
  ): Promise<{ word: string; ahead: number; lease: Lease | null; tokenHash: string }> {
    const asked = performance.now();
    const [word, ahead, leftMs, ...fields] = await this.#connection.run(script, keys, args);
    // Redis measured the remaining time at some moment since the request. Assume the earliest moment, so that the lease
    // never lasts longer here than in Redis.
    const remainingMs = Math.max(0, Math.floor(Number(leftMs ?? 0) - (performance.now() - asked)));
    const [holder, fence, tokenHash, acquired, expires, ttlMs, steal, detached] = fields;
    // A lease is not signed, so its fields may contain anything.
    const isOdd = [fence, acquired, expires, ttlMs].some((field) => field !== null && !isCount(field));
    if (isOdd) throw corruptError(this.#keys.lease(sessionId), "a number in it is not valid");
    const lease = {
      sessionId,
      holder: printable(String(holder)),
      fence: Number(fence),
      acquiredAt: timeOf(acquired),
      expiresAt: timeOf(expires),
      remainingMs,
      ttlMs: Number(ttlMs),
      stealReason: typeof steal === "string" ? printable(steal) : null,
      ...(detached === "1" ? { detached: true as const } : {}),
    };
    return {
      word: String(word),
      ahead: Number(ahead ?? 0),
      lease: Number(leftMs ?? -1) >= 0 ? lease : null,
      tokenHash: String(tokenHash),
    };
  }
}

function bit(given: unknown): "0" | "1" {
  return given === undefined ? "0" : "1";
}

/** Whether the field is absent, or is a number that can be a time or a fence. */
function isCount(field: unknown): boolean {
  return field === undefined || /^\d{1,15}(?:\.\d+)?$/.test(String(field));
}

/** Whether a holder may rely on the lease. For other processes, the lease is in force as long as Redis has it. */
function isLeft(lease: Lease | null): lease is Lease {
  return lease !== null && lease.remainingMs > 0;
}

/** @param ms milliseconds since the epoch, by Redis's clock; null if there is no lease */
function timeOf(ms: unknown): string {
  return new Date(Number(ms ?? 0)).toISOString();
}
