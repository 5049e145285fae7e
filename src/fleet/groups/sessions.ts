import type { CopilotSession, SessionEvent } from "@github/copilot-sdk";
import { NEVER } from "../../base/clock.js";
import { FleetError, option, quote } from "../../base/errors.js";
import { isSessionId, validateUser } from "../../base/ids.js";
import type { OnProgress } from "../../base/progress.js";
import { SESSION_STATES } from "../../base/session.js";
import { type Duration, parseDuration } from "../../base/values/measures.js";
import type { Config } from "../../config/schema.js";
import {
  evictDownTo,
  evictEverywhere,
  filterSessions,
  gatherGarbage,
  gatherSessions,
  viewSessionOf,
} from "../../hosts/gather.js";
import type {
  AnswerOptions,
  CreateSessionOptions,
  ResumeSessionOptions,
  SendOptions,
  SessionFilter,
  SessionReply,
  Transcript,
  TurnResult,
  UpdateSessionOptions,
  UseOptions,
} from "../../hosts/options.js";
import { type ExportedSession, exportSession, importSession } from "../../hosts/sessions/archives.js";
import { deleteEverywhere, meantSessions, onlyMeant } from "../../hosts/sessions/delete.js";
import { followEvents, followTranscript, readTranscript } from "../../hosts/sessions/history.js";
import { answerRequest, followRequests, listRequests } from "../../hosts/sessions/requests.js";
import * as arg from "../../operations/fields.js";
import type { TurnReply } from "../../runtime/client/turn.js";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import type { GcRequest, GcResult } from "../../sessions/gc/collect.js";
import type { EvictionResult } from "../../sessions/memory/eviction.js";
import { sessionsNotFound } from "../../sessions/problems.js";
import type { AgentRequest, RequestChange } from "../../sessions/requests.js";
import { updateSession } from "../../sessions/update.js";
import { PendingReply } from "../../sessions/use/turn-records.js";
import type { SessionView } from "../../sessions/view.js";
import { Group } from "./group.js";

/**
 * Checks the tools of a new session. @throws FleetError `FLEET_USAGE_INVALID` when the configuration does not allow one
 * of them.
 */
function checkedTools(
  tools: readonly string[] | undefined,
  { session, isolation }: Pick<Config, "session" | "isolation">,
): readonly string[] | undefined {
  const allowed = session.tools ?? (isolation === "shared" ? [] : null);
  const denied = tools?.find((name) => allowed !== null && !allowed.includes(name));
  if (denied === undefined) return tools;
  const message = `${option("availableTools")} has ${quote(denied)}, which session.tools of the configuration does not allow.`;
  throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: ["copilotfleet config get session.tools"] });
}

/** Checks the members of a session, and removes duplicates. */
function validateMembers(members: readonly string[], owner: string): string[] {
  const valid = [...new Set(members.map((member) => validateUser(member, option("members"))))];
  if (!valid.includes(owner)) return valid;
  const message = `${option("members")} ${quote(owner)} is the owner: only other users are members.`;
  throw new FleetError("FLEET_USAGE_INVALID", message);
}

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

const START_WAIT_MS = 30_000;

/**
 * The sessions of all users on all hosts.
 *
 * A method that takes an id throws `FLEET_SESSION_NOT_FOUND` when the session does not exist, and also when the user
 * may not use it.
 */
export class SessionGroup extends Group {
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
    return await this.parts.store.sessions.count(user);
  }

  /**
   * Changes the purpose, the title, the TTL or the members of a session. Only its owner may do that. A list of
   * `members`, even an empty one, makes the session collaborative.
   *
   * @param options a field that is left out stays as it is. `purpose: null` and `title: null` remove them, and with
   * `ttl: null`, `session.ttl` applies
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
   * Returns the conversation so far, from the history on disk. Starts no server. Also works during a turn. Only the
   * owner and the members may read it. A warning (`fleet.takeWarnings`) reports lines of the history that cannot be
   * read. For a long conversation, {@link followTranscript} needs less memory.
   *
   * @param options.turns how many of the last turns to return; by default all
   * @throws FleetError `FLEET_SESSION_LOST` when the history is missing or too long; `FLEET_USAGE_INVALID` when
   * the transcript is too long to be returned at once; `FLEET_HOST_AWAY` when
   * the host that has it cannot be reached.
   */
  async transcript(id: string, options: { user: string; turns?: number; signal?: AbortSignal }): Promise<Transcript> {
    const entries: TranscriptEntry[] = [];
    const turns = options.turns ?? Number.POSITIVE_INFINITY;
    for await (const entry of readTranscript(this.parts, id, { ...options, turns })) entries.push(entry);
    return { session: await viewSessionOf(this.parts, id, options.user), entries };
  }

  /**
   * Yields the entries of {@link transcript} one by one. With `follow`, also yields the entries that are added later,
   * until the signal aborts.
   */
  followTranscript(
    id: string,
    options: { user: string; turns?: number; follow?: boolean; signal?: AbortSignal },
  ): AsyncGenerator<TranscriptEntry, void, undefined> {
    return followTranscript(this.parts, id, options);
  }

  /**
   * Yields the recorded events of a session, each once and in their order, with the ids that the runtime gives them.
   * Starts no server. Only the owner and the members may read them. The runtime does not record deltas.
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
   * @throws FleetError `FLEET_USAGE_INVALID` when an option is not allowed.
   */
  async gc(options: GcRequest = {}): Promise<GcResult> {
    const { ttl, dryRun = false, user, sessionIds, signal = NEVER, onProgress } = options;
    const ttlMs = ttl === undefined ? this.parts.ttlMs : parseDuration(ttl, { name: option("ttl") });
    return await gatherGarbage(this.parts.hosts, { ttlMs, dryRun, user, sessionIds, signal, onProgress });
  }

  /**
   * Lists the agent requests that wait for the user's answer in a session, on any host, oldest first. Only turns with
   * `interactive` make such requests, and only the user of the turn sees them. Leaves out requests that are put to a
   * client of the front door, to `chat` or to the caller's own handler.
   */
  async requests(id: string, { user }: { user: string }): Promise<AgentRequest[]> {
    return await listRequests(this.parts, id, user);
  }

  /**
   * Answers one of {@link requests}: a permission with `decision`, a question with `answer`. Resolves with the request
   * and its outcome.
   *
   * @param options.reason for a denial: the text that the model reads
   * @throws FleetError `FLEET_NAME_NOT_FOUND`; `FLEET_REQUEST_CLOSED` when the request no longer waits;
   * `FLEET_USAGE_INVALID` when the answer does not fit the request.
   */
  async answer(id: string, requestId: string, options: AnswerOptions): Promise<AgentRequest> {
    const { user, ...answer } = options;
    return await answerRequest(this.parts, { id, user, request: requestId, answer });
  }

  /**
   * Yields a change whenever one of {@link requests} is opened or closed, until the signal aborts. To miss none, begin
   * to follow before you list the requests.
   */
  followRequests(
    id: string,
    { user, signal = NEVER }: { user: string; signal?: AbortSignal },
  ): AsyncGenerator<RequestChange, void, undefined> {
    return followRequests(this.parts, id, { user, signal });
  }

  /**
   * Writes a session of any host, with its history and files, to one new file on this machine. Only the owner may do
   * that. Waits until no turn runs, and makes new turns wait during the export. Starts no server.
   *
   * @throws FleetError `FLEET_SESSION_LOCKED` or `FLEET_SESSION_BUSY` when the session is not free in time;
   * `FLEET_SESSION_LOST` when the history is missing; `FLEET_CONTENT_TOO_LARGE`; `FLEET_USAGE_INVALID` when the file
   * exists.
   */
  async export(id: string, options: ExportSessionOptions): Promise<ExportedSession> {
    return await exportSession(this.parts, id, { ...options, signal: options.signal ?? NEVER });
  }

  /**
   * Creates a session from a file that {@link export} wrote, in this fleet or in another one. The session belongs to
   * `user` and continues its history. Writes nothing if any part of the file is invalid.
   *
   * @throws FleetError `FLEET_USAGE_INVALID`; `FLEET_SESSION_EXISTS` when a session has that id; `FLEET_LIMIT_REACHED`.
   */
  async import(file: string, options: ImportSessionOptions): Promise<SessionView> {
    const { user, sessionId, signal = NEVER } = options;
    return await importSession(this.parts, file, { user, id: sessionId, signal });
  }

  static {
    const ofUser = arg.needs(["user"]);
    const nulls = { purpose: arg.orNull(arg.text), title: arg.orNull(arg.title), ttl: arg.orNull(arg.span) };
    Group.guard(SessionGroup.prototype, {
      create: [ofUser],
      resume: ["sessionId", ofUser],
      send: [arg.openSession, "prompt", "options"],
      use: ["sessionId", "prompt", ofUser],
      turn: ["sessionId", "prompt", ofUser],
      requests: ["sessionId", ofUser],
      answer: ["sessionId", "requestId", ofUser],
      followRequests: ["sessionId", ofUser],
      export: ["sessionId", arg.needs(["user", "output"])],
      import: ["file", ofUser],
      leave: [arg.openSession, "options"],
      list: [arg.options({ state: arg.choice(SESSION_STATES) })],
      find: ["text", "options"],
      matching: ["texts", "options"],
      get: ["sessionId", ofUser],
      count: ["user"],
      update: ["sessionId", arg.needs(["user"], nulls)],
      abort: ["sessionId", ofUser],
      transcript: ["sessionId", ofUser],
      followTranscript: ["sessionId", ofUser],
      followEvents: ["sessionId", ofUser],
      evict: [arg.exactlyOne("what", ["ids", "max"], { ids: arg.sessionIds }), "options"],
      gc: ["options"],
      delete: ["sessionIds", "options"],
    });
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
