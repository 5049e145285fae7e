import { FleetError } from "../../errors.js";
import type { EventLog } from "../../model/events/event.js";
import type { OnProgress } from "../../model/progress.js";
import type { ServerRecord } from "../../model/server.js";
import { NEVER } from "../../runtime/clock.js";
import { logStop } from "../../runtime/process/server-end.js";
import { stopServer } from "../../runtime/process/stop.js";
import { HeldClaim, untilUnclaimed } from "../claims/held-claim.js";
import { changeClaimed, claimStop, holderOf, recordEnd } from "../claims/transitions.js";
import type { PoolContext } from "../start/surroundings.js";
import { allCut, drainForGood } from "./drain.js";

export interface StopOptions {
  /** How long turns in flight may take to end, in milliseconds. */
  drainTimeoutMs: number;
  /** Whether to stop without waiting for turns and without SIGTERM. */
  force: boolean;
  /** If this signal aborts during the wait for turns, the server keeps running. */
  signal: AbortSignal;
  /** Once this signal aborts, the stop continues as with `force`. */
  hurry?: AbortSignal;
  /** Whether a restart or the next `serve` will start the server again, because it should still run. */
  stays?: boolean;
  onProgress?: OnProgress | undefined;
}

export interface Stopped {
  id: string;
  outcome: "drained" | "killed" | "already-stopped";
  /** Sessions whose turn was cut. */
  cut: string[];
  /** The server's host, in a fleet on several hosts. */
  hostName?: string;
}

export const TERMINATE_GRACE_MS = 5_000;
/**
 * The grace period in milliseconds if turns outlasted the drain. It is short, because the caller has already waited for
 * a long time.
 */
const LATE_GRACE_MS = 2_000;
/**
 * How much longer than the drain timeout a stop waits for another command, such as a start, to give up its claim, in
 * milliseconds.
 */
const OTHERS_MS = 2 * TERMINATE_GRACE_MS;

/** Drains and stops one server and frees its port. Its home stays. */
export async function stopRecorded(
  context: Pick<PoolContext, "store" | "config" | "events">,
  id: string,
  options: StopOptions,
): Promise<Stopped> {
  const { store } = context;
  const { hurry = NEVER, stays = false } = options;
  using held = new HeldClaim();
  const patience = performance.now() + options.drainTimeoutMs + OTHERS_MS;
  for (;;) {
    const decision = await store.registry.update((registry) => claimStop(registry, id, { stays, claim: held.claim }));
    switch (decision.kind) {
      case "absent":
      case "stopped":
        return { id, outcome: "already-stopped", cut: [] };
      case "busy":
        if (options.signal.aborted || performance.now() > patience) throw busy(decision.server);
        await untilUnclaimed(store, id, { untilMs: patience, signal: options.signal });
        continue;
      case "stop": {
        const { server, from } = decision;
        const drained = await drainForGood(context, server, from, {
          timeoutMs: options.force ? 0 : options.drainTimeoutMs,
          signal: options.signal,
          hurry,
          late: "cut",
          stays,
          onProgress: options.onProgress,
        });
        const graceMs = drained.cut.length > 0 ? LATE_GRACE_MS : TERMINATE_GRACE_MS;
        const outcome = await stopServer(server, { graceMs, force: options.force, hurry });
        logStop(server, outcome, { stopping: from === "draining" });
        await changeClaimed(store, server, (record) => recordEnd(record, "stopped", null));
        if (outcome === "already-stopped") return { id, outcome, cut: [] };
        const cut = await allCut(server, drained);
        noteStop(context.events, server, { cut, isForced: options.force });
        return { id, outcome: outcome === "killed" || cut.length > 0 ? "killed" : "drained", cut };
      }
    }
  }
}

/** Adds the stop of a server to the audit log. Unless the stop was forced, also adds the drain. */
function noteStop(
  events: EventLog,
  { id, user }: ServerRecord,
  how: { cut: readonly string[]; isForced: boolean },
): void {
  const { cut, isForced } = how;
  const about = { user, serverId: id, detail: cut.length === 0 ? null : `turns cut: ${cut.length}` };
  if (!isForced) events.note({ ...about, type: "server.drained", outcome: cut.length === 0 ? "ok" : "failed" });
  events.note({ ...about, type: "server.stopped", reason: isForced ? "forced" : null });
}

function busy(server: ServerRecord): FleetError {
  const message = `Server ${server.id} is ${server.state}, because ${holderOf(server)} is working on it.`;
  return new FleetError("FLEET_SERVER_DRAINING", message, { suggestions: ["copilotfleet ps"] });
}
