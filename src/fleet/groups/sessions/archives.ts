import type { Duration } from "../../../config/values/duration.js";
import { type ExportedSession, exportSession, importSession } from "../../../peers/sessions/archives.js";
import { NEVER } from "../../../runtime/clock.js";
import type { SessionView } from "../../../sessions/view.js";
import { RequestGroup } from "./requests.js";

export interface ExportSessionOptions {
  /** The owner of the session. */
  user: string;
  /** The path of the new file. */
  output: string;
  /** How long to wait for the end of a running turn or of a lease. Default: `30s`. */
  wait?: Duration;
  /** @internal `wait` after the check of the arguments. */
  waitMs?: number;
  signal?: AbortSignal;
}

export interface ImportSessionOptions {
  /** The owner of the new session. It need not be the user who owned the session before. */
  user: string;
  /** The id of the new session. Default: the id that the session had. */
  sessionId?: string;
  signal?: AbortSignal;
}

/** The methods of `fleet.sessions` for archives. */
export abstract class ArchiveGroup extends RequestGroup {
  /**
   * Writes a session of any host, with its history and files, to one new file on this machine. Only the owner may do that.
   * Waits until no turn runs, and makes new turns wait during the export. Starts no server.
   *
   * @throws FleetError `FLEET_SESSION_LOCKED` or `FLEET_SESSION_BUSY` when the session is not free in time;
   * `FLEET_SESSION_LOST` when the history is missing; `FLEET_ARCHIVE_TOO_LARGE`; `FLEET_USAGE_INVALID` when the file exists.
   */
  async export(id: string, options: ExportSessionOptions): Promise<ExportedSession> {
    return await exportSession(this.parts, id, { ...options, signal: options.signal ?? NEVER });
  }

  /**
   * Creates a session from a file that {@link export} wrote, in this fleet or in another one. The session belongs to
   * `user` and continues its history. Writes nothing if any part of the file is invalid.
   *
   * @throws FleetError `FLEET_ARCHIVE_INVALID`; `FLEET_SESSION_EXISTS` when a session has that id; `FLEET_LIMIT_REACHED`.
   */
  async import(file: string, options: ImportSessionOptions): Promise<SessionView> {
    const { user, sessionId, signal = NEVER } = options;
    return await importSession(this.parts, file, { user, id: sessionId, signal });
  }
}
