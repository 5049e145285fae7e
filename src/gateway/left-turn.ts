import { setTimeout as delay } from "node:timers/promises";
import { isRunning } from "../pool/server.js";
import { RawConnection, RpcError } from "../runtime/client/raw-connection.js";
import { deadline } from "../runtime/deadline.js";
import { provenEndpoint } from "../runtime/probe.js";
import type { ServerRecord } from "../store/store.js";

/** How often a turn whose client has gone is asked after, in milliseconds. */
const ASK_MS = 250;

export interface LeftTurn {
  server: ServerRecord;
  sessionId: string;
  /** Aborts when the turn is not to go on. */
  lease: AbortSignal | undefined;
  /** How long it may go on, in milliseconds: it may wait for its client, and so for ever. Then it is aborted. */
  ttlMs: number;
  /** How long the server may take over one answer, in milliseconds. */
  answerMs: number;
  /** Whether it is not to be waited for any more. */
  isDraining: () => boolean;
}

/**
 * Resolves when a turn is over whose client has hung up: others may have the session open, and then it goes on. It is asked
 * after over a connection of its own, since the client's are closed. A server that is slow to answer has not said that it is.
 *
 * @throws what is neither the end of the server nor that of the session in its memory.
 */
export async function leftTurnOver(turn: LeftTurn): Promise<void> {
  const until = performance.now() + turn.ttlMs;
  const isGivenUp = () => turn.isDraining() || turn.lease?.aborted === true || performance.now() > until;
  for (;;) {
    try {
      return await ask(turn, isGivenUp);
    } catch (error) {
      // Not in memory any more, or its server has ended: then no turn goes on.
      if (error instanceof RpcError || !isRunning(turn.server)) return;
      if (isGivenUp()) throw error;
    }
    await delay(ASK_MS, undefined, { ref: false });
  }
}

async function ask({ server, sessionId, answerMs, isDraining }: LeftTurn, isGivenUp: () => boolean): Promise<void> {
  using opening = deadline(answerMs);
  await using connection = await RawConnection.open(provenEndpoint(server), opening.signal, { lasting: true });
  const request = async (method: string) => {
    using limit = deadline(answerMs);
    return await connection.request(method, { sessionId }, limit.signal);
  };
  // Twice: the prompt may still be on its way to the server.
  for (let idle = 0; idle < 2; ) {
    if (isDraining()) return;
    if (isGivenUp()) {
      await request("session.abort");
      return;
    }
    const activity = (await request("session.metadata.activity")) as { hasActiveWork?: unknown };
    idle = activity.hasActiveWork === true ? 0 : idle + 1;
    if (idle < 2) await delay(ASK_MS, undefined, { ref: false });
  }
}
