import type { ServerRecord } from "../../model/server.js";
import type { RawConnection } from "../../runtime/client/raw-connection.js";

/** The server answers, but no session can be created on it. */
export class NoSessionError extends Error {
  override readonly name = "NoSessionError";

  constructor(cause: unknown) {
    super(`no session can be made: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/**
 * Creates a session and deletes it again, without a turn. This proves that the server can write its home and set up a
 * session. The provider is never called, but without one the runtime refuses a session that has no GitHub token.
 *
 * @throws NoSessionError for any failure.
 */
export async function tryASession(connection: RawConnection, server: ServerRecord, signal: AbortSignal): Promise<void> {
  const sessionId = `copilotfleet-probe-${server.launchId ?? server.id}`;
  const provider = { type: "openai", baseUrl: "http://127.0.0.1:9/v1", wireApi: "completions" };
  try {
    await connection.request("session.create", { sessionId, model: "probe", provider, envValueMode: "direct" }, signal);
    await connection.request("session.delete", { sessionId }, signal);
  } catch (error) {
    throw new NoSessionError(error);
  }
}
