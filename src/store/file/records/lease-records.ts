import { existsSync, readdirSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { FleetError, isFleetError, quote, systemCode } from "../../../errors.js";
import type { Lease, LeaseAnswer, LeaseRequest } from "../../../model/lease.js";
import { hashToken, leaseLost } from "../../../model/lease-token.js";
import { assertSessionId, isSessionId } from "../../../model/session-id.js";
import type { LeaseStore } from "../../ports.js";
import { damageWarning, describeDamage } from "../commit/damage.js";
import { type Base, Document } from "../commit/document.js";
import { scratchName } from "../commit/durable.js";
import { readHead } from "../commit/head.js";
import { createDocument, discard } from "../commit/new-document.js";
import type { StoreContext } from "../context.js";
import { corruptError, mediumError } from "../failures.js";
import { now, remaining } from "./lease-clock.js";
import {
  acquire,
  emptyState,
  type Granted,
  held,
  inForce,
  type LeaseState,
  leave,
  release,
  renew,
} from "./lease-state.js";

const KEEP = 2;
/** How far the clock behind the fences of another store may be ahead of this one, in milliseconds. */
const LONGEST_WAIT_MS = 10_000;

/**
 * One document for each session. The first request for a lease creates it, and it lasts until the session is deleted.
 * So taking a lease costs the same however many sessions there are.
 */
export class LeaseRecords implements LeaseStore {
  readonly #context: StoreContext;
  readonly #folder: string;
  /** The documents with an update under way. */
  readonly #documents = new Map<string, Document<LeaseState>>();

  constructor(context: StoreContext) {
    this.#context = context;
    this.#folder = join(context.root, "leases");
  }

  async acquire(request: LeaseRequest): Promise<LeaseAnswer> {
    const { sessionId, holder, ttlMs, placeMs, steal, detached } = request;
    const wanted = {
      holder,
      ttlMs,
      placeMs,
      tokenHash: hashToken(request.token),
      stealReason: steal?.reason ?? null,
      ...(detached === undefined ? {} : { detached }),
    };
    for (;;) {
      const answer = await this.#update(sessionId, (state) => acquire(state, wanted, now()));
      if (answer === undefined) {
        const state = JSON.stringify(emptyState(sessionId, Date.now()));
        await createDocument(this.#context, this.#folderOf(sessionId), state);
      } else if (answer.granted === null) {
        const { current, ahead } = answer;
        return { granted: false, lease: current && viewLease(sessionId, current), ahead };
      } else {
        const lease = viewLease(sessionId, answer.granted);
        // The commit may have taken longer than the lease lasts.
        return lease.remainingMs > 0 ? { granted: true, lease } : { granted: false, lease: null, ahead: 0 };
      }
    }
  }

  async leave(sessionId: string, token: string): Promise<void> {
    const tokenHash = hashToken(token);
    await this.#update(sessionId, (state) => leave(state, tokenHash));
  }

  async renew(sessionId: string, token: string, ttlMs: number): Promise<Lease> {
    const tokenHash = hashToken(token);
    const granted = await this.#update(sessionId, (state) => renew(state, tokenHash, ttlMs, now()));
    if (granted === undefined) throw leaseLost(sessionId);
    const lease = viewLease(sessionId, granted);
    if (lease.remainingMs === 0) throw leaseLost(sessionId);
    return lease;
  }

  async release(sessionId: string, token: string): Promise<void> {
    const tokenHash = hashToken(token);
    const released = await this.#update(sessionId, (state) => {
      release(state, tokenHash, now());
      return true;
    });
    if (released === undefined) throw leaseLost(sessionId);
  }

  async read(sessionId: string): Promise<Lease | null> {
    this.#context.checkRoot();
    return this.#current(sessionId);
  }

  #current(sessionId: string): Lease | null {
    const state = this.#read(sessionId);
    const lease = state && inForce(state, now());
    return lease && viewLease(sessionId, lease);
  }

  async check(sessionId: string, token: string): Promise<Lease> {
    this.#context.checkRoot();
    const state = this.#read(sessionId);
    if (state === null) throw leaseLost(sessionId);
    return viewLease(sessionId, held(state, hashToken(token), now()));
  }

  /**
   * The highest fence of all sessions. Uses the current time in place of an unreadable document, because its fences came
   * from the clock, see {@link raiseFences}.
   */
  async highestFence(): Promise<number> {
    this.#context.checkRoot();
    const fences = this.#ids().map((id) => {
      try {
        return this.#read(id)?.fence ?? 0;
      } catch (error) {
        if (isFleetError(error, "FLEET_STATE_CORRUPT")) return Date.now();
        throw error;
      }
    });
    return fences.reduce((highest, fence) => Math.max(highest, fence), 0);
  }

  /**
   * Records nothing, because every fence is at least the time when it is given out. So it is enough that the time is
   * above `fence`. If it is not, the fence came from a clock that is ahead of this machine's, and this method waits a
   * short time.
   */
  async raiseFences(fence: number): Promise<void> {
    const aheadMs = fence + 1 - Date.now();
    if (aheadMs > LONGEST_WAIT_MS) {
      throw new FleetError(
        "FLEET_STATE_BUSY",
        `Earlier leases were numbered by a clock that is ${aheadMs} ms ahead of this machine's, so new leases would be refused as old.`,
        { suggestions: ["Set the clocks of both machines right, and wait until this one has caught up."] },
      );
    }
    if (aheadMs > 0) await sleep(aheadMs);
  }

  /**
   * Ends the lease and drops the queue of a deleted session. This need not be durable, because no lease survives a
   * restart of the machine.
   */
  async delete(sessionId: string): Promise<void> {
    const target = this.#folderOf(sessionId);
    if (!existsSync(target)) return;
    if (this.#mayGoBack(sessionId)) {
      await this.#update(sessionId, (state) => {
        state.lease = null;
        state.queue = [];
      });
      return;
    }
    const trash = join(this.#context.root, scratchName("trash"));
    try {
      await rename(target, trash);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return;
      throw mediumError("write", target, error);
    }
    await discard(trash);
  }

  /** Removes the documents of sessions without a record, unless somebody still holds the lease. */
  async sweepOrphans(isRecorded: (sessionId: string) => boolean): Promise<void> {
    for (const id of this.#ids()) {
      if (!isRecorded(id) && !this.#isHeld(id)) await this.delete(id);
    }
  }

  /** False for an unreadable document, because it is useless to a holder, too. */
  #isHeld(sessionId: string): boolean {
    try {
      return this.#current(sessionId) !== null;
    } catch (error) {
      if (isFleetError(error, "FLEET_STATE_CORRUPT")) return false;
      throw error;
    }
  }

  folders(): string[] {
    return this.#ids().map((id) => join(this.#folder, id));
  }

  async settled(): Promise<void> {
    await Promise.all([...this.#documents.values()].map(({ pending }) => pending));
  }

  /** @returns undefined when there is no document. */
  async #update<T>(sessionId: string, change: (draft: LeaseState) => T): Promise<T | undefined> {
    const document = this.#documents.get(sessionId) ?? this.#open(sessionId);
    this.#documents.set(sessionId, document);
    try {
      return await document.update(change);
    } catch (error) {
      if (error instanceof Missing) return undefined;
      throw error;
    } finally {
      if (document.pending === undefined) this.#documents.delete(sessionId);
    }
  }

  #open(sessionId: string): Document<LeaseState> {
    const { deadlineMs, onStep, checkRoot } = this.#context;
    return new Document({
      folder: this.#folderOf(sessionId),
      keep: KEEP,
      deadlineMs,
      onStep,
      parse: parseState,
      prepare: checkRoot,
      load: () => {
        const base = this.#load(sessionId);
        if (base === null) throw new Missing();
        return base;
      },
      // Do not wait for other writers. Most callers only look, so waiting would cost them more than an occasional
      // retry.
      enter: async () => async () => undefined,
      committed: async () => undefined,
    });
  }

  #read(sessionId: string): LeaseState | null {
    const base = this.#load(sessionId);
    return base && parseState(base.data);
  }

  #load(sessionId: string): Base | null {
    const folder = this.#folderOf(sessionId);
    const head = readHead(folder, KEEP);
    if (head === undefined) return null;
    if (head.data === undefined) {
      const why = head.damaged.map(({ rev, reason }) => `revision ${rev}: ${reason}`).join("; ");
      throw corruptError(folder, why || "its folder is empty", `mv ${folder} ${this.#folder}-corrupt-${sessionId}`);
    }
    const damaged = head.damaged.map(({ rev }) => rev);
    if (damaged.length > 0) {
      const damage = describeDamage(`the lease on ${quote(sessionId)}`, folder, head.damaged);
      this.#context.warn(damageWarning(damage, "The fleet uses the previous revision."));
    }
    const mend = damaged.length > 0;
    return { rev: head.rev, top: head.top, next: head.top + 1, data: head.data, damaged, mend };
  }

  /**
   * Whether fences could decrease if the document were deleted now. The fences of a new document start at the current
   * time in milliseconds. The last fence can be higher if the clock was set back, or if the lease changed hands more than
   * once a millisecond. An unreadable document may be deleted, because nothing else could clear it away.
   */
  #mayGoBack(sessionId: string): boolean {
    try {
      const state = this.#read(sessionId);
      return state !== null && state.fence >= Date.now();
    } catch (error) {
      if (isFleetError(error, "FLEET_STATE_CORRUPT")) return false;
      throw error;
    }
  }

  #folderOf(sessionId: string): string {
    assertSessionId(sessionId);
    return join(this.#folder, sessionId);
  }

  #ids(): string[] {
    try {
      return readdirSync(this.#folder).filter(isSessionId);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      throw mediumError("read", this.#folder, error);
    }
  }
}

/** There is no document. Callers of the store never see this error. */
class Missing extends FleetError {
  constructor() {
    super("FLEET_INTERNAL", "There is no lease document.");
  }
}

function parseState(data: string): LeaseState {
  return JSON.parse(data) as LeaseState;
}

/** The lease for callers. It omits the hash of the token, and its remaining time is as of now, not of the commit. */
function viewLease(sessionId: string, granted: Granted): Lease {
  const { holder, fence, acquiredAt, expiresAt, ttlMs, stealReason, detached } = granted;
  const remainingMs = Math.floor(remaining(granted.end, now()));
  const lease = { sessionId, holder, fence, acquiredAt, expiresAt, remainingMs, ttlMs, stealReason };
  return detached === undefined ? lease : { ...lease, detached };
}
