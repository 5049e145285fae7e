import { setTimeout as delay } from "node:timers/promises";
import type { EventFilter, EventPage } from "../accounts/audit/query.js";
import type { EventsBreak } from "../accounts/audit/verify.js";
import { endingAtOnce } from "../base/clock.js";
import { type FleetError, isFleetError } from "../base/errors.js";
import type { EventType, FleetEvent } from "../base/event.js";
import type { Moment } from "../base/values/measures.js";
import { compareText } from "../base/values/text.js";
import type { FleetHosts, Host } from "./fleet-hosts.js";

/** How many events to request from a host at once. */
const PAGE = 1_000;
/** How long a host waits for a new event before it answers that there is none, in milliseconds. */
const WAIT_MS = 5_000;
/** How often to look for hosts that are new or back, in milliseconds. */
const LOOK_MS = 5_000;

/** Selects events. An event must match every field that is given. */
export interface EventsFilter {
  /** The user who caused the event, or whom it concerns. */
  user?: string | undefined;
  /** The kind of event. */
  type?: EventType | undefined;
  /** Only events from this time on. Default: all. */
  since?: Moment | undefined;
}

/** The events of all hosts that answer, sorted by time. */
export async function gatherEvents(hosts: FleetHosts, filter: EventFilter): Promise<FleetEvent[]> {
  const { answers } = await hosts.everywhere(async (host) => (await readAll(host, filter)).events);
  return inOrder(answers.flatMap(({ answer }) => answer));
}

/** @param from the number of the event after which to begin. If it is given, the filter's time does not apply. */
async function readAll(host: Host, filter: EventFilter, from?: number): Promise<Pick<EventPage, "events" | "next">> {
  const events: FleetEvent[] = [];
  const selected = from === undefined ? filter : ofAnyTime(filter);
  for (let after = from ?? 0; ; ) {
    const page = await host.events({ ...selected, after, limit: PAGE });
    events.push(...page.events);
    after = page.next;
    if (!page.hasMore) return { events, next: after };
  }
}

function ofAnyTime({ sinceMs: _, ...filter }: EventFilter): EventFilter {
  return filter;
}

function inOrder(events: readonly FleetEvent[]): FleetEvent[] {
  return timedInOrder(events).map(({ event }) => event);
}

/**
 * Sorts the events of several hosts by time. The events of each host stay in the order of its log, even if its clock
 * jumped back.
 *
 * @returns each event with the time by which it was sorted
 */
export function timedInOrder(events: readonly FleetEvent[]): { event: FleetEvent; time: string }[] {
  const latest = new Map<string | null, string>();
  const timed = events
    .toSorted((a, b) => a.seq - b.seq)
    .map((event) => {
      const before = latest.get(event.host) ?? "";
      const time = compareText(before, event.at) > 0 ? before : event.at;
      latest.set(event.host, time);
      return { event, time };
    });
  const byHost = (a: FleetEvent, b: FleetEvent) => compareText(a.host ?? "", b.host ?? "") || a.seq - b.seq;
  return timed.sort((a, b) => compareText(a.time, b.time) || byHost(a.event, b.event));
}

/**
 * For each host, by name, the number (`seq`) of the last event that the caller has. The name is `""` in a fleet on one
 * host.
 */
export type EventPositions = Readonly<Record<string, number>>;

interface FollowOptions {
  signal: AbortSignal;
  warn: (message: string) => void;
  after?: EventPositions | undefined;
}

/**
 * Yields the existing events of all hosts, and then new events, until the signal aborts or the caller stops reading.
 * Keeps asking a host that does not answer, and yields its events when it is back. The filter's time applies only to
 * events that exist at the beginning, because a host's clock may be set back later.
 */
export function followEvents(
  hosts: FleetHosts,
  filter: EventFilter,
  options: FollowOptions,
): AsyncGenerator<FleetEvent, void, undefined> {
  return endingAtOnce(options.signal, (signal) => eventsUntil(hosts, filter, { ...options, signal }));
}

async function* eventsUntil(
  hosts: FleetHosts,
  filter: EventFilter,
  { signal, warn, after = {} }: FollowOptions,
): AsyncGenerator<FleetEvent, void, undefined> {
  const follower = new Follower(filter, signal, warn);
  const begin = async (host: Host) => await readAll(host, filter, after[host.name ?? ""]);
  const { answers } = await hosts.everywhere(begin);
  for (const { host, answer } of answers) follower.begin(host, answer.next);
  yield* inOrder(answers.flatMap(({ answer }) => answer.events));
  void follower.lookForHosts(hosts, after);
  yield* follower.events();
}

class Follower {
  readonly #filter: EventFilter;
  readonly #signal: AbortSignal;
  readonly #warn: (message: string) => void;
  readonly #followed = new Set<string>();
  #arrived: FleetEvent[] = [];
  #failure: unknown;
  #wake: () => void = () => undefined;

  constructor(filter: EventFilter, signal: AbortSignal, warn: (message: string) => void) {
    this.#filter = filter;
    this.#signal = signal;
    this.#warn = warn;
    signal.addEventListener("abort", () => this.#wake(), { once: true });
  }

  async *events(): AsyncGenerator<FleetEvent, void, undefined> {
    while (!this.#signal.aborted) {
      if (this.#failure !== undefined) throw this.#failure;
      const arrived = this.#arrived;
      this.#arrived = [];
      yield* inOrder(arrived);
      if (this.#arrived.length > 0 || this.#failure !== undefined) continue;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        if (this.#signal.aborted) resolve();
      });
    }
  }

  /**
   * @param after the number of the last event that was read; null: begins with the first event that the filter selects
   */
  begin(host: Host, after: number | null): void {
    this.#followed.add(host.name ?? "");
    this.#follow(host, after).catch((error: unknown) => {
      this.#failure = error;
      this.#wake();
    });
  }

  /**
   * Also follows hosts that appear later. Begins at the host's position in `positions`, or else at the first event that
   * the filter selects.
   */
  async lookForHosts(hosts: FleetHosts, positions: EventPositions): Promise<void> {
    while (await this.#pause(LOOK_MS)) {
      const others = await hosts.others().catch(() => []);
      for (const host of others) {
        const name = host.name ?? "";
        if (!this.#followed.has(name)) this.begin(host, positions[name] ?? null);
      }
    }
  }

  async #follow(host: Host, from: number | null): Promise<void> {
    let filter = from === null ? this.#filter : ofAnyTime(this.#filter);
    for (let after = from ?? 0; !this.#signal.aborted; ) {
      try {
        const page = await host.events({ ...filter, after, limit: PAGE, waitMs: WAIT_MS }, { signal: this.#signal });
        after = page.next;
        if (!page.hasMore) filter = ofAnyTime(this.#filter);
        if (page.events.length === 0) continue;
        this.#arrived.push(...page.events);
        this.#wake();
      } catch (error) {
        if (this.#signal.aborted) return;
        if (host.name === null || !isFleetError(error)) throw error;
        this.#report(host.name, error);
        await this.#pause(LOOK_MS);
      }
    }
  }

  #report(host: string, error: FleetError): void {
    this.#warn(`Host ${host} did not answer: ${error.message}`);
  }

  async #pause(ms: number): Promise<boolean> {
    await delay(ms, undefined, { signal: this.#signal }).catch(() => undefined);
    return !this.#signal.aborted;
  }
}

/** The first place where a host's audit log is not as the host wrote it. */
export interface BrokenAt extends EventsBreak {
  /** Null in a fleet on one host. */
  host: string | null;
}

export interface EventsVerified {
  /** Whether the logs of all live hosts were verified, and none of them is broken. */
  ok: boolean;
  /** How many events the verified logs have. */
  events: number;
  /** The first break of the first broken log, or null. */
  brokenAt: BrokenAt | null;
  /** The first break of each broken log. */
  breaks: BrokenAt[];
  /** The hosts that did not answer. Their logs were not verified. */
  missing: string[];
}

/** Verifies the audit logs of all hosts. */
export async function verifyEverywhere(hosts: FleetHosts): Promise<EventsVerified> {
  const { answers, missing } = await hosts.everywhere(async (host) => await host.verifyEvents({}));
  const breaks = answers.flatMap(({ host, answer: { brokenAt } }) =>
    brokenAt === null ? [] : [{ host: host.name, ...brokenAt }],
  );
  const silent = missing.filter(({ isGone }) => !isGone);
  return {
    ok: breaks.length === 0 && silent.length === 0,
    events: answers.reduce((sum, { answer }) => sum + answer.events, 0),
    brokenAt: breaks[0] ?? null,
    breaks,
    missing: missing.map(({ host }) => host),
  };
}
