import { NEVER } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { ServerRecord } from "../../base/server.js";
import { isRunning } from "../../servers/server.js";
import { Connector, type PeerDialer } from "../routing/connector.js";
import { Opener, Router } from "../routing/router.js";
import { type Attachment, type ClientOrigin, ClientState } from "../state/client-state.js";
import type { DoorState } from "../state/door-state.js";
import { failure } from "../state/report.js";
import { PromptQueue } from "../turns/prompt-queue.js";
import type { Params } from "../wire/client-message.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { Dispatcher } from "./dispatcher.js";

/** An authenticated client, with its servers, sessions and turns. */
export class Client {
  readonly state: ClientState;
  readonly prompts: PromptQueue;
  readonly #router: Router;
  readonly dispatcher: Dispatcher;

  /**
   * @param hello the client's parameters of `connect`, without `token` and `fleet`
   * @param peers null if the door must not relay the client to other hosts
   */
  constructor(door: DoorState, socket: ClientSocket, origin: ClientOrigin, hello: Params, peers: PeerDialer | null) {
    this.state = new ClientState(door, socket, origin);
    const connector = new Connector(this.state, hello, peers);
    const opener = new Opener(this.state, connector);
    this.#router = new Router(this.state, connector, opener);
    this.prompts = new PromptQueue(this.state, this.#router);
    this.dispatcher = new Dispatcher(this.state, this.#router, opener, this.prompts);
    door.clients.add(this.state);
    void this.#reopenSessions();
  }

  /** Connects to the user's home server, on this host or another one. @returns that server's answer to `connect` */
  async greet(): Promise<Params> {
    const { door, user, isRelayed, protocol } = this.state;
    // If another host relayed the client here only for a session, do not start a home server for its user here.
    if (isRelayed && !(await door.directory.place(user)).here) return { protocolVersion: protocol.version };
    return (await this.#router.home()).greeting;
  }

  /** Reopens the sessions that arrive in `unopened`: those of one batch one after another. Never rejects. */
  async #reopenSessions(): Promise<void> {
    const { unopened } = this.state;
    for (let lost = await unopened.take(); lost !== undefined; lost = await unopened.take()) void this.#reopen(lost);
  }

  /** Never rejects. */
  async #reopen(lost: readonly Attachment[]): Promise<void> {
    const { gone, attachments, report } = this.state;
    for (const attachment of lost) {
      if (gone.aborted) return;
      const { sessionId } = attachment;
      try {
        await this.#router.reattach(attachment);
      } catch (error) {
        // If the session was deleted, delete its attachment, because another user may take the id. But keep a newer
        // attachment, because the client may have opened another session with this id since.
        const isDeleted = isFleetError(error, "FLEET_SESSION_NOT_FOUND");
        if (isDeleted && attachments.get(sessionId) === attachment) attachments.delete(sessionId);
        // Only log the error. The client's next request for the session tries again, and gets the error if that fails,
        // too.
        if (!isDeleted && !gone.aborted) report.event({ event: "failed", sessionId, ...failure(error) });
      }
    }
  }

  close(): void {
    const { state } = this;
    const { door, needing } = state;
    door.clients.delete(state);
    state.close();
    state.needing = undefined;
    if (needing === undefined) return;
    const ending = this.#endServer(needing).finally(() => void door.endings.delete(ending));
    door.endings.add(ending);
  }

  /**
   * Stops the server whose model requests this client answered, because without the client no turn there can end. Does
   * nothing if another launch of the server runs now. Never rejects.
   */
  async #endServer({ id, launchId }: ServerRecord): Promise<void> {
    const { door, report } = this.state;
    try {
      const server = (await door.store.registry.read()).servers[id];
      // The launch may already have ended. Perhaps the client has gone because of that.
      if (server === undefined || server.launchId !== launchId || !isRunning(server)) return;
      report.event({ event: "server-ended", detail: id });
      await door.pool.stop(id, { drainTimeoutMs: 0, force: false, signal: NEVER, stays: true });
    } catch (error) {
      report.event({ event: "failed", ...failure(error, `the end of ${id}`) });
    }
  }
}
