import type { SessionRecord } from "../model/session.js";
import { setUseMarker, type UseMarker } from "../pool/use-markers.js";
import { pause } from "../runtime/clock.js";
import type { SessionsContext } from "../sessions/context.js";
import { sessionBusy } from "../sessions/problems.js";
import { heldPermit, type PermitRequest, WAIT_MS } from "../sessions/use/permit.js";

const POLL_MS = 5;

/**
 * Runs `work` while no turn runs in a session. Like a turn, waits for the turn in progress, and makes later turns wait.
 * Starts no server.
 *
 * @throws FleetError `FLEET_SESSION_LOCKED` or `FLEET_SESSION_BUSY` when other uses of the session do not end within
 * `waitMs`.
 */
export async function betweenTurns<T>(
  context: SessionsContext,
  found: SessionRecord,
  request: PermitRequest,
  work: (record: SessionRecord) => Promise<T>,
): Promise<T> {
  await using permit = await heldPermit(context, found, request);
  const { record, lease } = permit;
  const server = (await context.store.registry.read()).servers[record.serverId];
  const { waitMs = WAIT_MS, signal } = request;
  const until = performance.now() + waitMs;
  // A turn in a private session may run without a lease, so that only its use marker shows it. Set a marker, and wait
  // until it is the only one. A later turn finds this marker, and waits for the lease.
  using marker: UseMarker | null | undefined = server && (await setUseMarker(server, record.id, { waitMs, signal }));
  if (marker === null) throw sessionBusy(record.id);
  while (marker?.isShared() === true) {
    if (performance.now() > until) throw sessionBusy(record.id);
    await pause(POLL_MS, signal);
  }
  const result = await work(record);
  await lease.check();
  return result;
}
