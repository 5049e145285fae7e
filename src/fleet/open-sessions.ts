import type { CopilotSession } from "@github/copilot-sdk";
import { FleetError, quote } from "../errors.js";
import { allOf } from "../peers/fleet-hosts.js";
import type { RemoteSession } from "../peers/sessions/remote-session.js";
import type { RemoteSessions } from "../peers/sessions/remote-sessions.js";
import type { Sessions } from "../sessions/sessions.js";
import type { OpenSession } from "../sessions/use/open-session.js";
import type { SessionView } from "../sessions/view.js";

/** A session that this process has open, on this host or on another. */
interface Opened {
  open: OpenSession | RemoteSession;
  leave(options: { park?: boolean }): Promise<SessionView>;
  close(): Promise<void>;
}

/** The sessions that this process has open. */
export class OpenSessions {
  readonly #sessions: Sessions;
  readonly #remote: RemoteSessions;
  readonly #open = new Map<string, Opened>();

  constructor(sessions: Sessions, remote: RemoteSessions) {
    this.#sessions = sessions;
    this.#remote = remote;
  }

  keep(open: OpenSession): CopilotSession {
    return this.#keep({
      open,
      leave: async (options) => await this.#sessions.leave(open, open.record.owner, options),
      close: async () => await open.close(),
    });
  }

  keepRemote(open: RemoteSession, user: string): CopilotSession {
    return this.#keep({
      open,
      leave: async (options) => await this.#remote.leave(open, user, options),
      close: async () => await this.#remote.end(open),
    });
  }

  #keep(opened: Opened): CopilotSession {
    const { session } = opened.open;
    this.#open.set(session.sessionId, opened);
    return session;
  }

  /** @throws FleetError `FLEET_USAGE_INVALID` when this process does not have the session open. */
  get(sessionId: string): Opened["open"] {
    return this.#opened(sessionId).open;
  }

  /** Leaves the session. @throws like {@link get}. */
  async leave(sessionId: string, options: { park?: boolean }): Promise<SessionView> {
    const { leave } = this.#opened(sessionId);
    this.#open.delete(sessionId);
    return await leave(options);
  }

  async closeAll(): Promise<void> {
    const open = [...this.#open.values()];
    this.#open.clear();
    await allOf(open.map(async ({ close }) => await close()));
  }

  #opened(sessionId: string): Opened {
    const open = this.#open.get(sessionId);
    if (open !== undefined) return open;
    throw new FleetError(
      "FLEET_USAGE_INVALID",
      `Session ${quote(sessionId)} was not opened with this Fleet: call sessions.create or sessions.resume first.`,
    );
  }
}
