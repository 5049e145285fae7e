import { setTimeout as delay } from "node:timers/promises";
import type { ServerRecord } from "../../model/server.js";
import { isRunning } from "../../pool/server.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { deadline } from "../../runtime/deadline.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";

/** How often to ask the server about a turn whose client has gone, in milliseconds. */
const ASK_MS = 250;

export interface LeftTurn {
  server: ServerRecord;
  sessionId: string;
  /** Aborts when the turn must not go on. */
  lease: AbortSignal | undefined;
  /** How long the turn may go on before it is aborted, in milliseconds. It may wait for its client, which never answers. */
  ttlMs: number;
  /** How long the server may take over one answer, in milliseconds. */
  answerMs: number;
  /** Whether to stop waiting for the turn. */
  isDraining: () => boolean;
}

/**
 * Resolves when a turn whose client has hung up is over, or when it was aborted. Such a turn goes on if others have the
 * session open. We ask about it over a new connection, because the client's connections are closed. If the server is slow
 * to answer, the turn does not count as over.
 *
 * @throws the last error, when we give up on a server that runs but does not answer.
 */
export async function leftTurnOver(turn: LeftTurn): Promise<void> {
  const until = performance.now() + turn.ttlMs;
  const isGivenUp = () => turn.isDraining() || turn.lease?.aborted === true || performance.now() > until;
  for (;;) {
    try {
      return await ask(turn, isGivenUp);
    } catch (error) {
      // The session is no longer in memory, or its server has ended. Either way its turn is over.
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
  // Ask twice, because the prompt may still be on its way to the server.
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
