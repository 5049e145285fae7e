import { isFleetError } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { loadedSessions } from "../../pool/stop/drain.js";
import { isInTurn } from "../../runtime/client/activity.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { deadline } from "../../runtime/clock.js";
import { provenEndpoint } from "../../runtime/process/probe.js";

/** The activity of a server at one moment. `latencyMs` and `turns` are null if the server does not answer in time. */
export interface ServerActivity {
  id: string;
  /** The time from a ping to its answer, in milliseconds. */
  latencyMs: number | null;
  /** The ids of its sessions that are in a turn. */
  turns: string[] | null;
}

/**
 * Asks each server that should be running for its activity, each over a separate connection.
 * @param answerMs how long one server may take, in milliseconds
 */
export async function askActivity(servers: readonly ServerRecord[], answerMs: number): Promise<ServerActivity[]> {
  const asked = servers.filter(({ state }) => state === "ready" || state === "unhealthy" || state === "draining");
  return await Promise.all(asked.map(async (server) => await activityOf(server, answerMs)));
}

async function activityOf(server: ServerRecord, answerMs: number): Promise<ServerActivity> {
  const { id } = server;
  using limit = deadline(answerMs);
  try {
    await using connection = await RawConnection.open(provenEndpoint(server), limit.signal);
    const start = performance.now();
    await connection.request("ping", { message: "activity" });
    const latencyMs = performance.now() - start;
    const sessions = loadedSessions(server);
    const answers = await Promise.all(sessions.map(async (session) => await isInTurn(connection, session)));
    return { id, latencyMs, turns: sessions.filter((_, index) => answers[index] === true) };
  } catch (error) {
    if (isFleetError(error)) return { id, latencyMs: null, turns: null };
    throw error;
  }
}
