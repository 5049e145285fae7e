import { setTimeout as delay } from "node:timers/promises";
import type { ServerRecord } from "../../model/server.js";
import { isRunning } from "../../pool/server.js";
import { isInTurn } from "../../runtime/client/activity.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { deadline } from "../../runtime/clock.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import type { SessionUse } from "../../sessions/use/use-session.js";
import type { DoorState } from "../state/door/door-state.js";

/** How often to ask the server about a turn whose client has gone, in milliseconds. */
const ASK_MS = 250;

/**
 * Waits for the end of a turn whose client has disconnected, because the turn continues if other clients have the
 * session open. Stops waiting when the door drains. Asks the server over a new connection, because the client's
 * connections are closed.
 *
 * Aborts the turn when its lease is lost, or after `lock.ttl`, because the turn may be waiting for an answer of the
 * client that has gone.
 *
 * @param use the turn's use of the session
 * @throws the last error, when the time is up and the server runs but does not answer.
 */
export async function abandonedTurnOver(door: DoorState, { server, record, lease }: SessionUse): Promise<void> {
  const until = performance.now() + door.config.lock.ttlMs;
  const isGivenUp = () => door.draining || lease?.signal.aborted === true || performance.now() > until;
  for (;;) {
    try {
      return await ask(door, server, record.id, isGivenUp);
    } catch (error) {
      // Either the session is no longer in memory, or its server has ended. So its turn is over.
      if (error instanceof RpcError || !isRunning(server)) return;
      if (isGivenUp()) throw error;
    }
    await delay(ASK_MS);
  }
}

async function ask(door: DoorState, server: ServerRecord, sessionId: string, isGivenUp: () => boolean): Promise<void> {
  const answerMs = door.config.health.timeoutMs;
  using opening = deadline(answerMs);
  await using connection = await RawConnection.open(provenEndpoint(server), opening.signal, { lasting: true });
  const request = async (method: string, params: object) => {
    using limit = deadline(answerMs);
    return await connection.request(method, params, limit.signal);
  };
  // Require two idle answers, because the prompt may still be on its way to the server.
  for (let idle = 0; idle < 2; ) {
    if (door.draining) return;
    if (isGivenUp()) {
      await request("session.abort", { sessionId });
      return;
    }
    const inTurn = await isInTurn({ request }, sessionId);
    if (inTurn === null) return;
    idle = inTurn ? 0 : idle + 1;
    if (idle < 2) await delay(ASK_MS);
  }
}
