import type { CopilotSession } from "@github/copilot-sdk";
import { isFleetError } from "../../errors.js";
import { hostAway } from "../../hosts/problems.js";
import type { HostRecord } from "../../model/host.js";
import type { SessionRecord } from "../../model/session.js";
import { runTurn, type TurnReply } from "../../runtime/client/turn.js";
import { abortable, deadline, either } from "../../runtime/deadline.js";
import type { AmbientLeases } from "../../sessions/leases/ambient.js";
import type { HeldLease } from "../../sessions/leases/leases.js";
import type { TurnLease } from "../../sessions/leases/seen.js";
import type { SendOptions } from "../../sessions/use/open-session.js";
import { errorOfDoor, type LinkContext, whenGone } from "../calls/control-link.js";
import type { DoorClient } from "../calls/door-client.js";

/** A session that is open at the front door of the host that has it. */
export interface RemoteAttachment {
  session: CopilotSession;
  door: DoorClient;
  host: HostRecord;
  /** The fence of the lease that covers its turns there. */
  fence: number | undefined;
}

/** Where a turn finds its lease if the caller does not pass one. */
interface LeasesAround {
  ambient: AmbientLeases;
  user: string;
  /** A lease that was taken by the process which started this one. */
  outer: HeldLease | null;
}

type Prompt = Parameters<CopilotSession["send"]>[0] | string;

const GOODBYE_MS = 2_000;

/**
 * A session on another host that this process uses through that host's front door. That host takes care of leases, of
 * room in memory, and of servers that die.
 */
export class RemoteSession {
  readonly record: SessionRecord;
  readonly #context: LinkContext;
  readonly #attach: (lease: TurnLease | undefined) => Promise<RemoteAttachment>;
  readonly #around: LeasesAround;
  #attached: RemoteAttachment;
  #lost = false;

  /** @param attach opens the session again, after the connection or the host has ended, or under another lease */
  constructor(
    record: SessionRecord,
    context: LinkContext,
    attached: RemoteAttachment,
    attach: (lease: TurnLease | undefined) => Promise<RemoteAttachment>,
    around: LeasesAround,
  ) {
    this.record = record;
    this.#context = context;
    this.#attached = attached;
    this.#attach = attach;
    this.#around = around;
    this.#watch(attached);
  }

  /** The SDK's session. When the connection has ended, the next turn replaces it with a new one. */
  get session(): CopilotSession {
    return this.#attached.session;
  }

  /** The host that the session is open on. */
  get host(): HostRecord {
    return this.#attached.host;
  }

  /** @throws FleetError as a turn on this host; `FLEET_HOST_AWAY` as soon as the session's host is gone. */
  async send(message: Prompt, options: SendOptions = {}): Promise<TurnReply> {
    const prompt = typeof message === "string" ? { prompt: message } : message;
    const { ambient, user, outer } = this.#around;
    const lease = options.lease ?? ambient.find(this.record.id, user) ?? outer ?? undefined;
    await lease?.check();
    if (this.#lost || lease?.fence !== this.#attached.fence) await this.#reattach(lease);
    const { session, door, host } = this.#attached;
    // A turn whose lease is lost is aborted here, and also there when that host notices.
    using stop = either(options.signal, lease?.signal);
    using gone = whenGone(this.#context.directory, host.name);
    let isGone = false;
    const away = gone.promise.then(() => {
      isGone = true;
    });
    try {
      return await runTurn(session, Promise.race([door.closed, away]), prompt, { ...options, signal: stop.signal });
    } catch (error) {
      if (isGone) throw hostAway(host.name, error);
      if (!isFleetError(error, "FLEET_TURN_FAILED")) throw error;
      // That host may have noticed first that the lease is lost, and may have ended the turn for that reason.
      await lease?.check();
      throw errorOfDoor(error.cause) ?? error;
    }
  }

  async #reattach(lease: TurnLease | undefined): Promise<void> {
    const before = this.#attached;
    await before.door.end();
    this.#attached = await this.#attach(lease);
    this.#lost = false;
    this.#watch(this.#attached);
  }

  #watch({ session, door }: RemoteAttachment): void {
    // Replace the SDK's own sendAndWait, which hangs until its timeout when the connection ends during the turn.
    session.sendAndWait = async (message, timeout = 60_000) => (await this.send(message, { timeoutMs: timeout })).event;
    void door.closed.then(() => {
      if (this.#attached.door === door) this.#lost = true;
    });
  }

  /** Leaves the session. Its server unloads it when no other client has it open. Its state stays. */
  async close(): Promise<void> {
    const { session, door } = this.#attached;
    {
      using limit = deadline(GOODBYE_MS);
      await abortable(Promise.race([session.disconnect(), door.closed]), limit.signal).catch(() => null);
    }
    try {
      await door.end();
    } finally {
      await this.#around.outer?.detach();
    }
  }
}
