import { setTimeout as delay } from "node:timers/promises";
import type { Moment } from "../../config/values/moment.js";
import { compareText } from "../../config/values/text.js";
import { type FleetError, isFleetError } from "../../errors.js";
import type { EventFilter, EventPage } from "../../events/query.js";
import type { EventType, FleetEvent } from "../../model/events/event.js";
import type { FleetHosts } from "../fleet-hosts.js";
import type { Host } from "../host.js";

/** How many events to ask a host for at once. */
const PAGE = 1_000;
/** How long a host waits for a new event before it answers that there is none, in milliseconds. */
const WAIT_MS = 5_000;
/** How often to look for hosts that are new or back, in milliseconds. */
const LOOK_MS = 5_000;

/** Selects events. An event must match every field that is given. */
export interface EventsFilter {
  /** The user who did it, or whom it concerns. */
  user?: string | undefined;
  /** The kind of event. */
  type?: EventType | undefined;
  /** Only events from this time on. Default: all. */
  since?: Moment | undefined;
}

/** The events of all hosts that answer, by their time. */
export async function gatherEvents(hosts: FleetHosts, filter: EventFilter): Promise<FleetEvent[]> {
  const { answers } = await hosts.everywhere(async (host) => (await readAll(host, filter)).events);
  return inOrder(answers.flatMap(({ answer }) => answer));
}

async function readAll(host: Host, filter: EventFilter): Promise<Pick<EventPage, "events" | "next">> {
  const events: FleetEvent[] = [];
  for (let after = 0; ; ) {
    const page = await host.events({ ...filter, after, limit: PAGE });
    events.push(...page.events);
    after = page.next;
    if (!page.hasMore) return { events, next: after };
  }
}

/** Events of several hosts by their time, and those of one host in the order of its log. */
function inOrder(events: FleetEvent[]): FleetEvent[] {
  const byPlace = (a: FleetEvent, b: FleetEvent) => (a.host === b.host ? a.seq - b.seq : compareText(a.at, b.at));
  return events.sort((a, b) => byPlace(a, b) || compareText(a.id, b.id));
}

/**
 * Yields the events of all hosts, and then those that follow, until the signal aborts. A host that does not answer is asked
 * again, and its events follow when it is back.
 */
export async function* followEvents(
  hosts: FleetHosts,
  filter: EventFilter,
  { signal, warn }: { signal: AbortSignal; warn: (message: string) => void },
): AsyncGenerator<FleetEvent, void, undefined> {
  const follower = new Follower(filter, signal, warn);
  const { answers } = await hosts.everywhere(async (host) => await readAll(host, filter));
  for (const { host, answer } of answers) follower.begin(host, answer.next);
  yield* inOrder(answers.flatMap(({ answer }) => answer.events));
  void follower.lookForHosts(hosts);
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

  begin(host: Host, after: number): void {
    this.#followed.add(host.name ?? "");
    this.#follow(host, after).catch((error: unknown) => {
      this.#failure = error;
      this.#wake();
    });
  }

  /** Follows hosts that are new, from the beginning of what the filter selects. */
  async lookForHosts(hosts: FleetHosts): Promise<void> {
    while (await this.#pause(LOOK_MS)) {
      const others = await hosts.others().catch(() => []);
      for (const host of others) if (!this.#followed.has(host.name ?? "")) this.begin(host, 0);
    }
  }

  async #follow(host: Host, from: number): Promise<void> {
    for (let after = from; !this.#signal.aborted; ) {
      try {
        const page = await host.events(
          { ...this.#filter, after, limit: PAGE, waitMs: WAIT_MS },
          { signal: this.#signal },
        );
        after = page.next;
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
    await delay(ms, undefined, { signal: this.#signal, ref: false }).catch(() => undefined);
    return !this.#signal.aborted;
  }
}
