import { randomBytes } from "node:crypto";
import { userInfo } from "node:os";
import type { Config } from "../config/schema.js";
import { FleetError } from "../errors.js";
import type { Actor, EventCounts, EventLog, FleetEvent, NewEvent, Via } from "../model/events/event.js";
import type { Store } from "../store/ports.js";
import { currentActor } from "./acting.js";
import type { EventWriter } from "./writer.js";

/** How long a noted event may wait for others, in milliseconds. */
const DELAY_MS = 200;
/** How many noted events wait while the log cannot be written. More are lost, and counted. */
const MOST_WAITING = 10_000;
const MOST_CHARACTERS = 1_000;
/** After so many writes, the log is tidied. */
const TIDY_EACH = 16;

export type Unnumbered = Omit<FleetEvent, "seq">;

export interface EventsContext {
  store: Pick<Store, "hosts">;
  config: Pick<Config, "events">;
  stateRoot: string;
  via: Via;
  /** Reports a problem that did not stop the work. */
  warn: (message: string) => void;
}

/**
 * The log of what people and the fleet do. The first event loads the code that writes it.
 *
 * The events of this process share writes. {@link note} only adds an event to a list, and {@link record} waits until the
 * list is on disk.
 */
export class Events implements EventLog {
  readonly #counts = { written: 0, lost: 0 };
  readonly #context: EventsContext;
  readonly #process: Actor;
  #waiting: Unnumbered[] = [];
  /** Whether one of the waiting events must survive a loss of power. */
  #isDurable = false;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();
  #writer: Promise<EventWriter> | undefined;
  #sinceTidy = 0;
  #isTidying = false;
  /** How many events were lost since the last write. */
  #lost = 0;

  constructor(context: EventsContext) {
    this.#context = context;
    this.#process = { user: null, tokenId: null, via: context.via, os: null };
  }

  get counts(): EventCounts {
    return { ...this.#counts, waiting: this.#waiting.length };
  }

  note(event: NewEvent): void {
    this.#add(event);
    this.#timer ??= setTimeout(() => {
      // A failure has been reported, and the events wait for the next write.
      this.#writeNow().catch(() => undefined);
    }, DELAY_MS).unref();
  }

  async record(event: NewEvent): Promise<void> {
    const added = this.#add(event);
    this.#isDurable = true;
    try {
      await this.#writeNow();
    } catch (error) {
      // The action will not happen, so its event must not be written later.
      this.#waiting = this.#waiting.filter((each) => each !== added);
      throw unwritable(event, error);
    }
  }

  /** Writes all events that wait. Does not fail, because nobody waits for them. */
  async close(): Promise<void> {
    await this.flush();
    if (this.#sinceTidy > 0) await this.#tidy();
  }

  async flush(): Promise<void> {
    if (this.#waiting.length > 0) await this.#writeNow().catch(() => undefined);
    await this.#writing.catch(() => undefined);
  }

  #add({ actor, ...event }: NewEvent): Unnumbered {
    this.#process.os ??= osUser();
    const now = Date.now();
    const added: Unnumbered = {
      id: `${now.toString(36).padStart(9, "0")}${randomBytes(6).toString("hex")}`,
      at: new Date(now).toISOString(),
      type: event.type,
      actor: { ...this.#process, ...currentActor(), ...actor },
      user: event.user ?? null,
      sessionId: event.sessionId ?? null,
      serverId: event.serverId ?? null,
      host: this.#context.store.hosts?.own ?? null,
      outcome: event.outcome ?? "ok",
      reason: event.reason ?? null,
      detail: event.detail == null ? null : plain(event.detail),
    };
    if (this.#waiting.length < MOST_WAITING) this.#waiting.push(added);
    else {
      this.#lost += 1;
      this.#counts.lost += 1;
    }
    return added;
  }

  /** Writes the events that wait, after the write under way. */
  async #writeNow(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const before = this.#writing;
    const write = before.catch(() => undefined).then(async () => await this.#write());
    this.#writing = write;
    await write;
  }

  async #write(): Promise<void> {
    const events = this.#waiting;
    if (events.length === 0) return; // the write before took them
    const [durable, lost] = [this.#isDurable, this.#lost];
    this.#waiting = [];
    this.#isDurable = false;
    this.#lost = 0;
    try {
      const writer = await this.#openWriter();
      await writer.append(lost === 0 ? events : [...events, this.#lostEvent(lost)], { durable });
      this.#counts.written += events.length;
      this.#sinceTidy += 1;
      if (this.#sinceTidy >= TIDY_EACH) void this.#tidy();
    } catch (error) {
      this.#isDurable ||= durable;
      this.#lost += lost;
      this.#waiting = [...events, ...this.#waiting];
      this.#context.warn(`The log of events cannot be written: ${messageOf(error)}`);
      throw error;
    }
  }

  /** Moves batches into segments, and keeps the log within its size. Never rejects. */
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
      // The log has warned, and the next time tries again.
    } finally {
      this.#isTidying = false;
    }
  }

  #lostEvent(count: number): Unnumbered {
    const template = this.#waiting.length;
    const lost = this.#add({ type: "events.lost", outcome: "failed", detail: `${count} events could not be written` });
    this.#waiting.length = template;
    return lost;
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

/** A text that does not look like a pseudonym. */
function plain(text: string): string {
  const short = text.slice(0, MOST_CHARACTERS);
  return short.startsWith("~") ? ` ${short}` : short;
}

let known: string | undefined;

/** The name of the operating-system user; the number of the user if the system has no name for it. */
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
  const message = `The event ${type} could not be written to the log of events, so the action was refused. ${messageOf(cause)}`;
  return new FleetError("FLEET_EVENTS_UNWRITABLE", message, {
    suggestions: ["df -h PATH; df -i PATH", "copilotfleet doctor"],
    cause,
  });
}
