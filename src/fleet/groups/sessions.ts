import type { CopilotSession, SessionEvent } from "@github/copilot-sdk";
import { parseDuration } from "../../config/values/duration.js";
import { option } from "../../errors.js";
import { isSessionId } from "../../model/ids.js";
import type { OnProgress } from "../../model/progress.js";
import { filterSessions } from "../../peers/filters.js";
import { evictDownTo, evictEverywhere, gatherGarbage, gatherSessions, viewSessionOf } from "../../peers/gather.js";
import { deleteEverywhere } from "../../peers/sessions/delete.js";
import { followEvents } from "../../peers/sessions/events.js";
import { meantSessions, onlyMeant } from "../../peers/sessions/meant.js";
import { followTranscript, readTranscript } from "../../peers/sessions/transcript.js";
import type { TurnReply } from "../../runtime/client/turn.js";
import { NEVER } from "../../runtime/clock.js";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import type { GcRequest, GcResult } from "../../sessions/gc/collect.js";
import type { EvictionResult } from "../../sessions/memory/eviction.js";
import { sessionsNotFound } from "../../sessions/problems.js";
import { updateSession } from "../../sessions/update.js";
import { PendingReply } from "../../sessions/use/reply.js";
import type { SessionView } from "../../sessions/view.js";
import type {
  CreateSessionOptions,
  ResumeSessionOptions,
  SendOptions,
  SessionFilter,
  SessionReply,
  Transcript,
  TurnResult,
  UpdateSessionOptions,
  UseOptions,
} from "../options.js";
import { checkedTools, SESSION_ARGUMENTS, validateMembers } from "./arguments/sessions.js";
import { Group } from "./group.js";
import { ArchiveGroup } from "./sessions/archives.js";

const START_WAIT_MS = 30_000;

/**
 * The sessions of all users on all hosts.
 *
 * A method that takes an id throws `FLEET_SESSION_NOT_FOUND` when the session does not exist, and also when the user
 * may not use it.
 */
export class SessionGroup extends ArchiveGroup {
  /**
   * Creates a session that belongs to the user, on the user's server, and starts the server if necessary. Also accepts
   * settings of the SDK's `createSession`. The fleet's configuration supplies provider, model and permissions.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` when a session has that id, even if it belongs to another user.
   */
  async create(options: CreateSessionOptions): Promise<CopilotSession> {
    const { user, sessionId, purpose, title, ttl, signal, model, members, ephemeral, needsModel, waitMs, ...session } =
      options;
    return await this.parts.open.create({
      user,
      id: sessionId,
      purpose,
      title,
      model,
      tools: checkedTools(session.availableTools, this.parts.config),
      members: members === undefined ? undefined : validateMembers(members, user),
      ephemeral,
      needsModel,
      waitMs,
      ttlMs: ttl === undefined ? undefined : parseDuration(ttl, { name: option("ttl") }),
      session,
      signal: signal ?? AbortSignal.timeout(START_WAIT_MS),
    });
  }

  /** Opens an existing session, even in a new process or after the session's server was stopped or killed. */
  async resume(id: string, options: ResumeSessionOptions): Promise<CopilotSession> {
    const { user, signal = AbortSignal.timeout(START_WAIT_MS), waitMs, ...session } = options;
    return await this.parts.open.resume(id, { user, session, waitMs, signal });
  }

  /**
   * Runs one turn in a session that this fleet created or resumed. Fails at once if the server dies.
   *
   * @throws FleetError `FLEET_TURN_FAILED`, `FLEET_TURN_TIMEOUT` or `FLEET_SERVER_LOST`.
   */
  send(session: CopilotSession, prompt: string, options: SendOptions = {}): PendingReply<TurnReply> {
    return new PendingReply(
      async (onDelta) => await this.parts.open.send(session.sessionId, prompt, alsoTo(onDelta, options)),
    );
  }

  /**
   * Opens a session, runs one turn in it, and leaves it. In a collaborative session, holds the lease throughout, so
   * that members on different servers do not disturb each other. All calls of the user with the same `key` run one
   * turn, on any host and even after a crash. Later calls return its reply from the history. A cut turn is not rerun.
   *
   * @throws FleetError like {@link resume} and {@link send}; `FLEET_SESSION_LOCKED` when the lease is not free in time;
   * `FLEET_IDEMPOTENCY_KEY_REUSED` when the key belongs to a call with another session, prompt, timeout or attachments.
   */
  use(id: string, prompt: string, options: UseOptions): PendingReply<SessionReply> {
    return new PendingReply(async (onDelta) => {
      const use = { ...alsoTo(onDelta, options), signal: options.signal ?? NEVER };
      const { reply, session, turn, usage } = await this.parts.open.use(id, prompt, use);
      return { ...reply, session: session ?? (await viewSessionOf(this.parts, id, options.user)), turn, usage };
    });
  }

  /**
   * Like {@link use}, but keeps the session open for a minute, for its next turn. Leaves the session at once if it is
   * ephemeral, is on another host, or was opened with `options.session`.
   */
  turn(id: string, prompt: string, options: UseOptions): PendingReply<TurnResult> {
    return new PendingReply(async (onDelta) => {
      const use = { ...alsoTo(onDelta, options), keep: true, signal: options.signal ?? NEVER };
      const { reply, turn, usage } = await this.parts.open.use(id, prompt, use);
      return { ...reply, turn, usage };
    });
  }

  /**
   * Leaves a session that this fleet created or resumed. Unloads it if nobody else uses it, and keeps its state.
   * Deletes an ephemeral session, unless `park` keeps it for its next use.
   */
  async leave(session: CopilotSession, options: { park?: boolean } = {}): Promise<SessionView> {
    return await this.parts.open.leave(session.sessionId, options);
  }

  /**
   * Lists the sessions of all users or of one user on all hosts, most recently used first. If a host does not answer,
   * adds a warning (`fleet.takeWarnings`) and shows its sessions as recorded.
   *
   * @throws FleetError `FLEET_USAGE_INVALID` when the fleet does not have the host of the filter.
   */
  async list(filter: SessionFilter = {}): Promise<SessionView[]> {
    const { user, ...others } = filter;
    return await filterSessions(this.parts, await gatherSessions(this.parts, user), others);
  }

  /**
   * Returns the id of the session that a person means by a text: the session with this id, or else the only one whose
   * id begins with the text. An id with its middle replaced with `…` matches, too, because tables on a terminal cut ids
   * in this way. Returns the text unchanged if no session matches. Without `user`, considers the sessions of all users.
   * The other methods need the complete id of a session, because programs always have it.
   *
   * @throws FleetError `FLEET_SESSION_AMBIGUOUS` when several sessions match; `FLEET_SESSION_NOT_FOUND` when no session
   * matches and the text cannot be an id.
   */
  async find(text: string, { user }: { user?: string | undefined } = {}): Promise<string> {
    const [ids = []] = await this.matching([text], { user });
    const id = onlyMeant(text, ids);
    if (id === undefined && !isSessionId(text)) throw sessionsNotFound([text]);
    return id ?? text;
  }

  /** For each text, returns the ids of the sessions that it may mean: the candidates from which {@link find} picks. */
  async matching(texts: readonly string[], { user }: { user?: string | undefined } = {}): Promise<string[][]> {
    return await meantSessions(this.parts, texts, user);
  }

  /** Returns how many sessions the user owns, as `limits.default.sessions` counts them. */
  async count(user: string): Promise<number> {
    return await this.parts.store.sessions.count(user, Number.MAX_SAFE_INTEGER);
  }

  /**
   * Changes the purpose, the title, the TTL or the members of a session. Only its owner may do that. A list of `members`, even an
   * empty one, makes the session collaborative.
   *
   * @param options a field that is left out stays as it is. `purpose: null` and `title: null` remove them, and with `ttl: null`,
   * `session.ttl` applies
   * @throws FleetError `FLEET_SESSION_CHANGED` when the session is not as `expected`.
   */
  async update(id: string, options: UpdateSessionOptions): Promise<SessionView> {
    const { user, ttl, members } = options;
    await this.parts.finder.find(id, user);
    await this.parts.open.closeKept([id]);
    await updateSession(this.parts, id, user, {
      ...options,
      ttlMs: typeof ttl === "string" || typeof ttl === "number" ? parseDuration(ttl, { name: option("ttl") }) : ttl,
      members: members === undefined ? undefined : validateMembers(members, user),
    });
    return await viewSessionOf(this.parts, id, user);
  }

  /**
   * Aborts the running turn of a session, no matter which client began it. Resolves once the server has accepted the
   * abort. `aborted` is false if no turn was running.
   *
   * @throws FleetError `FLEET_SESSION_LOCKED` when another user has the session's lease; `FLEET_SERVER_UNREACHABLE`.
   */
  async abort(id: string, { user }: { user: string }): Promise<{ aborted: boolean }> {
    const { finder, hosts } = this.parts;
    const aborted = await finder.whereItIs(id, user, async (_, host) => {
      const where = host === null ? hosts.at({ here: true }) : hosts.at({ here: false, host });
      return await where.abort({ id, user });
    });
    return { aborted };
  }

  /** Returns one session of a user. */
  async get(id: string, options: { user: string }): Promise<SessionView> {
    return await viewSessionOf(this.parts, id, options.user);
  }

  /**
   * Returns the conversation so far, from the history on disk. Starts no server. Also works during a turn. Only the owner
   * and the members may read it. A warning (`fleet.takeWarnings`) reports lines of the history that cannot be read.
   * For a long conversation, {@link followTranscript} needs less memory.
   *
   * @param options.turns how many of the last turns to return; by default all
   * @throws FleetError `FLEET_SESSION_LOST` when the history is missing or too long; `FLEET_USAGE_INVALID` when
   * the transcript is too long to be returned at once; `FLEET_HOST_AWAY` or `FLEET_SESSION_STRANDED` when
   * the host that has it cannot be reached.
   */
  async transcript(id: string, options: { user: string; turns?: number; signal?: AbortSignal }): Promise<Transcript> {
    const entries: TranscriptEntry[] = [];
    const turns = options.turns ?? Number.POSITIVE_INFINITY;
    for await (const entry of readTranscript(this.parts, id, { ...options, turns })) entries.push(entry);
    return { session: await viewSessionOf(this.parts, id, options.user), entries };
  }

  /**
   * Yields the entries of {@link transcript} one by one. With `follow`, also yields the entries that are added later, until
   * the signal aborts.
   */
  followTranscript(
    id: string,
    options: { user: string; turns?: number; follow?: boolean; signal?: AbortSignal },
  ): AsyncGenerator<TranscriptEntry, void, undefined> {
    return followTranscript(this.parts, id, options);
  }

  /**
   * Yields the recorded events of a session, each once and in their order, with the ids that the runtime gives them. Starts no
   * server. Only the owner and the members may read them. The runtime does not record deltas.
   *
   * @param options.after the id of the last event that the caller has. It may come from another process or host.
   * @param options.follow whether to also yield the events that are added later, until the signal aborts
   * @throws FleetError like {@link transcript}; `FLEET_USAGE_INVALID` when the history does not have the event `after`.
   */
  followEvents(
    id: string,
    options: { user: string; after?: string; follow?: boolean; signal?: AbortSignal },
  ): AsyncGenerator<SessionEvent, void, undefined> {
    return followEvents(this.parts, id, options);
  }

  /**
   * Unloads idle sessions of all users from the memory of their servers, and keeps their state. Skips a session that is
   * in a turn, under a lease, being opened or not found, and reports the reason.
   *
   * @param what `ids`: these sessions. `max`: the least recently used ones, until at most `max` are in memory
   */
  async evict(
    what: { ids: readonly string[] } | { max: number },
    { onProgress }: { onProgress?: OnProgress } = {},
  ): Promise<EvictionResult> {
    if ("max" in what) return await evictDownTo(this.parts.hosts, what.max, onProgress);
    return await evictEverywhere(this.parts, what.ids, onProgress);
  }

  /**
   * Deletes sessions permanently, and resolves with the ids of those that existed. With `user`, a session of another
   * user counts as not found.
   *
   * @param options.ignoreNotFound whether to ignore sessions that are not found
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` after all other sessions were deleted; `FLEET_SESSION_BUSY` or
   * `FLEET_SESSION_LOCKED` when a session is in use. If other ids came before it, the error's `outcome` lists them:
   * `{ deleted, notFound }`.
   */
  async delete(
    ids: readonly string[],
    options: { user?: string | undefined; ignoreNotFound?: boolean } = {},
  ): Promise<{ deleted: string[] }> {
    await this.parts.open.closeKept(ids);
    const { deleted, notFound } = await deleteEverywhere(this.parts, ids, options.user);
    if (notFound.length > 0 && options.ignoreNotFound !== true) throw sessionsNotFound(notFound, { deleted, notFound });
    return { deleted };
  }

  /**
   * Makes each reachable host delete its unused sessions that are past their TTL, and its dead servers with their
   * folders. Can run at any time, even in parallel with another gc. If it is killed, the next run completes its work.
   *
   * @throws FleetError `FLEET_DURATION_INVALID` or `FLEET_USER_INVALID` when an option is not allowed.
   */
  async gc(options: GcRequest = {}): Promise<GcResult> {
    const { ttl, dryRun = false, user, sessionIds, signal = NEVER, onProgress } = options;
    const ttlMs = ttl === undefined ? this.parts.ttlMs : parseDuration(ttl, { name: option("ttl") });
    return await gatherGarbage(this.parts.hosts, { ttlMs, dryRun, user, sessionIds, signal, onProgress });
  }

  static {
    Group.guard(SessionGroup.prototype, SESSION_ARGUMENTS);
  }
}

/** Returns the options of a turn with one more listener for the pieces of the reply. */
function alsoTo<T extends SendOptions>(onDelta: (text: string) => void, options: T): T {
  return {
    ...options,
    onDelta: (text: string) => {
      onDelta(text);
      options.onDelta?.(text);
    },
  };
}
