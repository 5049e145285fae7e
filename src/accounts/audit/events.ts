import { randomBytes } from "node:crypto";
import { userInfo } from "node:os";
import { FleetError } from "../../base/errors.js";
import type { Actor, EventCounts, EventLog, FleetEvent, NewEvent, Via } from "../../base/event.js";
import type { Config } from "../../config/schema.js";
import { currentActor } from "../../identity/acting.js";
import type { Store } from "../../store/store.js";
import { chain } from "./line.js";
import { AuditLog } from "./log.js";
import { Pseudonyms } from "./pseudonyms.js";

/**
 * How long an event from {@link Events.note} waits for further events, so that one write covers all, in milliseconds.
 */
const DELAY_MS = 200;
/**
 * How many events may wait while writes fail. {@link Events.note} drops further events, and counts them for an
 * `events.lost` event.
 */
const MOST_WAITING = 10_000;
const MOST_CHARACTERS = 1_000;
/** The log is tidied after this many writes. */
const TIDY_EACH = 16;

export type Unnumbered = Omit<FleetEvent, "seq">;

interface Waiting {
  readonly event: Unnumbered;
  /**
   * Whether an action waits for the event. Such an event never counts as lost. If its write fails, the action is
   * refused, and the write is not tried again.
   */
  readonly isRecorded: boolean;
  /** The error of the write; undefined if it succeeded. */
  failure?: unknown;
}

export interface EventsContext {
  store: Pick<Store, "hosts"> & Partial<Pick<Store, "pseudonymKey">>;
  config: Pick<Config, "events">;
  stateRoot: string;
  via: Via;
  /** Reports a problem that did not stop the work. */
  warn: (message: string) => void;
}

/**
 * The audit log: what people and the fleet do.
 *
 * The events of this process share writes. {@link note} only adds an event to a list, and {@link record} waits until
 * the list is on disk.
 */
export class Events implements EventLog {
  readonly #counts = { written: 0, lost: 0 };
  readonly #context: EventsContext;
  readonly #process: Actor;
  #waiting: Waiting[] = [];
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();
  #writer: Promise<EventWriter> | undefined;
  #sinceTidy = 0;
  #isTidying = false;
  /** How many events were lost since the last successful write. */
  #lost = 0;

  constructor(context: EventsContext) {
    this.#context = context;
    this.#process = { user: null, tokenId: null, via: context.via, os: null };
  }

  get counts(): EventCounts {
    return { ...this.#counts, waiting: this.#waiting.length };
  }

  get actor(): Actor {
    this.#process.os ??= osUser();
    return { ...this.#process, ...currentActor() };
  }

  note(event: NewEvent): void {
    if (this.#waiting.length < MOST_WAITING) this.#waiting.push({ event: this.#built(event), isRecorded: false });
    else {
      this.#lost += 1;
      this.#counts.lost += 1;
    }
    this.#timer ??= setTimeout(() => {
      // `#write` has reported the failure, and the events stay in the list for the next write.
      this.#writeNow().catch(() => undefined);
    }, DELAY_MS).unref();
  }

  async record(event: NewEvent): Promise<void> {
    const entry: Waiting = { event: this.#built(event), isRecorded: true };
    this.#waiting.push(entry);
    // An earlier write may already have included the event. So ignore an error of this write, and check the entry
    // instead.
    await this.#writeNow().catch(() => undefined);
    if (entry.failure !== undefined) throw unwritable(event, entry.failure);
  }

  /** Writes all waiting events. Never rejects, because nobody waits for these events. */
  async close(): Promise<void> {
    await this.flush();
  }

  async flush(): Promise<void> {
    if (this.#waiting.length > 0) await this.#writeNow().catch(() => undefined);
    await this.#writing.catch(() => undefined);
  }

  #built({ actor, ...event }: NewEvent): Unnumbered {
    const now = Date.now();
    return {
      id: `${now.toString(36).padStart(9, "0")}${randomBytes(6).toString("hex")}`,
      at: new Date(now).toISOString(),
      type: event.type,
      actor: { ...this.actor, ...actor },
      user: event.user ?? null,
      sessionId: event.sessionId ?? null,
      serverId: event.serverId ?? null,
      host: this.#context.store.hosts?.own ?? null,
      outcome: event.outcome ?? "ok",
      reason: event.reason ?? null,
      detail: event.detail == null ? null : plain(event.detail),
    };
  }

  /** Writes the waiting events, after the write that is under way. */
  async #writeNow(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const before = this.#writing;
    const write = before.catch(() => undefined).then(async () => await this.#write());
    this.#writing = write;
    await write;
  }

  async #write(): Promise<void> {
    const taken = this.#waiting;
    if (taken.length === 0) return; // an earlier write included the events
    const lost = this.#lost;
    this.#waiting = [];
    this.#lost = 0;
    const events = taken.map(({ event }) => event);
    if (lost > 0) events.push(this.#lostEvent(lost));
    const recorded = taken.filter(({ isRecorded }) => isRecorded);
    try {
      const writer = await this.#openWriter();
      await writer.append(events, { isDurable: recorded.length > 0 });
      this.#written(taken.length);
    } catch (error) {
      for (const entry of recorded) entry.failure = error;
      this.#lost += lost;
      this.#waiting = [...taken.filter(({ isRecorded }) => !isRecorded), ...this.#waiting];
      this.#context.warn(`The audit log cannot be written: ${messageOf(error)}`);
      throw error;
    }
  }

  #written(count: number): void {
    this.#counts.written += count;
    this.#sinceTidy += 1;
    if (this.#sinceTidy >= TIDY_EACH) void this.#tidy();
  }

  /** Deletes the oldest events if the log is too long. Never rejects. */
  async #tidy(): Promise<void> {
    this.#sinceTidy = 0;
    if (this.#isTidying) return;
    this.#isTidying = true;
    try {
      const { config, stateRoot } = this.#context;
      if ((await AuditLog.of(stateRoot).bytes()) > LOG_BYTES) await trimEvents({ config, stateRoot, events: this });
    } catch {
      // The next tidying tries again.
    } finally {
      this.#isTidying = false;
    }
  }

  #lostEvent(count: number): Unnumbered {
    return this.#built({ type: "events.lost", outcome: "failed", detail: `${count} events could not be written` });
  }

  async #openWriter(): Promise<EventWriter> {
    this.#writer ??= EventWriter.open(this.#context);
    try {
      return await this.#writer;
    } catch (error) {
      this.#writer = undefined;
      throw error;
    }
  }
}

/** Shortens a text, and makes sure that it does not look like a pseudonym. */
function plain(text: string): string {
  const short = text.slice(0, MOST_CHARACTERS);
  return short.startsWith("~") ? ` ${short}` : short;
}

let known: string | undefined;

/** The name of the operating-system user; `uid` and the user's number if the system has no name for the user. */
function osUser(): string {
  if (known !== undefined) return known;
  try {
    known = plain(userInfo().username);
  } catch {
    known = `uid ${process.getuid?.() ?? "unknown"}`;
  }
  return known;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function unwritable({ type }: NewEvent, cause: unknown): FleetError {
  const message = `The event ${type} could not be written to the audit log, so the action was refused. ${messageOf(cause)}`;
  return new FleetError("FLEET_EVENTS_UNWRITABLE", message, {
    suggestions: ["df -h PATH; df -i PATH", "copilotfleet doctor"],
    cause,
  });
}

interface UpkeepContext {
  config: Pick<Config, "events">;
  events: EventLog;
  stateRoot: string;
  maxBytes?: number;
}

/**
 * Deletes the oldest lines of this host's log that exceed `events.retention` or the size of the log. First records the
 * number of the last line to delete, so that the verification does not report the deleted lines as missing.
 */
export async function trimEvents(
  { config, events, stateRoot, maxBytes = LOG_BYTES }: UpkeepContext,
  nowMs = Date.now(),
): Promise<void> {
  await events.flush();
  const log = AuditLog.of(stateRoot);
  const last = await log.excess({ retentionMs: config.events.retentionMs, maxBytes }, nowMs);
  if (last === null) return;
  await events.record({ type: "events.shortened", reason: String(last), detail: `lines up to ${last}` });
  await log.deleteUntil(last);
}

/** The size of the audit log of a host, in bytes. Beyond it, the oldest events are deleted. */
export const LOG_BYTES = 256 * 1024 * 1024;
/**
 * If the store did not return the key of pseudonyms, how long to wait before asking it again, in milliseconds. Without
 * this pause, a short command would wait for the store a second time when it ends.
 */
const RETRY_MS = 10_000;

/** Writes events to the log of this host. */
export class EventWriter {
  readonly #log: AuditLog;
  readonly #context: EventsContext;
  #pseudonyms: Pseudonyms;
  /** When to try again to read the fleet's key, by `performance.now()`. Null if this writer has the key. */
  #readsKeyAt: number | null;

  private constructor(context: EventsContext, pseudonyms: Pseudonyms, hasKeyOfFleet: boolean) {
    this.#context = context;
    this.#log = AuditLog.of(context.stateRoot);
    this.#pseudonyms = pseudonyms;
    this.#readsKeyAt = hasKeyOfFleet ? null : performance.now() + RETRY_MS;
  }

  static async open(context: EventsContext): Promise<EventWriter> {
    const { stateRoot, store, warn } = context;
    try {
      return new EventWriter(context, await Pseudonyms.open(stateRoot, store), true);
    } catch (error) {
      // If the store cannot be reached, use this host's own key, because the log can be verified with any of the host's
      // keys.
      const reason = error instanceof Error ? error.message : String(error);
      warn(`The audit log uses the key of pseudonyms of this host, because the fleet's key cannot be read: ${reason}`);
      return new EventWriter(context, await Pseudonyms.open(stateRoot, {}), false);
    }
  }

  async append(events: readonly Unnumbered[], options: { isDurable: boolean }): Promise<void> {
    await this.#log.append((head) => chain(events, head, this.#pseudonyms.of), options);
    // Do not await this, because events must not wait for a store that cannot be reached.
    if (this.#readsKeyAt !== null && performance.now() >= this.#readsKeyAt) void this.#readKeyOfFleet();
  }

  async #readKeyOfFleet(): Promise<void> {
    const { stateRoot, store } = this.#context;
    this.#readsKeyAt = performance.now() + RETRY_MS;
    try {
      this.#pseudonyms = await Pseudonyms.open(stateRoot, store);
      this.#readsKeyAt = null;
    } catch {
      // A later write tries again.
    }
  }
}
