import { randomBytes } from "node:crypto";
import { userInfo } from "node:os";
import type { Config } from "../config/schema.js";
import { FleetError } from "../errors.js";
import type { Actor, EventCounts, EventLog, FleetEvent, NewEvent, Via } from "../model/events/event.js";
import { UnsyncedError } from "../store/file/events/unsynced.js";
import type { Store } from "../store/ports.js";
import { currentActor } from "./acting.js";
import type { EventWriter } from "./writer.js";

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
  /** The size at which a segment of the log is complete. */
  segmentBytes?: number;
  via: Via;
  /** Reports a problem that did not stop the work. */
  warn: (message: string) => void;
}

/**
 * The audit log: what people and the fleet do. The code that writes the log is loaded with the first event.
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

  /** Writes all waiting events, and tidies the log. Never rejects, because nobody waits for these events. */
  async close(): Promise<void> {
    await this.flush();
    if (this.#sinceTidy > 0) await this.#tidy();
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
      await writer.append(events, { durable: recorded.length > 0 });
      this.#written(taken.length);
    } catch (error) {
      for (const entry of recorded) entry.failure = error;
      if (error instanceof UnsyncedError) {
        this.#written(taken.length);
        for (const { event } of recorded) this.note({ ...event, outcome: "failed", reason: "FLEET_EVENTS_UNWRITABLE" });
      } else {
        this.#lost += lost;
        this.#waiting = [...taken.filter(({ isRecorded }) => !isRecorded), ...this.#waiting];
      }
      this.#context.warn(`The audit log cannot be written: ${messageOf(error)}`);
      throw error;
    }
  }

  #written(count: number): void {
    this.#counts.written += count;
    this.#sinceTidy += 1;
    if (this.#sinceTidy >= TIDY_EACH) void this.#tidy();
  }

  /**
   * Moves the small files of single writes into segments, and deletes the oldest events if the log is too long. Never
   * rejects.
   */
  async #tidy(): Promise<void> {
    this.#sinceTidy = 0;
    const writer = await this.#writer?.catch(() => undefined);
    if (writer === undefined || this.#isTidying) return;
    this.#isTidying = true;
    try {
      await writer.tidy();
      if (writer.isTooLong()) {
        const { trimEvents } = await import("./upkeep.js");
        const { config, stateRoot } = this.#context;
        await trimEvents({ config, stateRoot, events: this });
      }
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
    this.#writer ??= import("./writer.js").then(({ EventWriter }) => EventWriter.open(this.#context));
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
