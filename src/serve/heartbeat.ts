import { hostname } from "node:os";
import { isLoopback } from "../config/redis-url.js";
import type { Address } from "../config/rules.js";
import { FleetError, quote } from "../errors.js";
import { lightBeacon, missingBeacons, putOutBeacon } from "../hosts/beacon.js";
import { ensureNote, instanceOf, removeNote } from "../hosts/host-note.js";
import { showAddress } from "../runtime/listen.js";
import type { HostEntry, HostRecord, Hosts } from "../store/store.js";
import type { ServeContext } from "./context.js";
import { noteTrouble } from "./trouble.js";

/** How many heartbeats there are in the time for which one counts. */
const BEATS = 3;
/** The least time between two tries after one that failed, in milliseconds. */
const RETRY_MS = 500;

export interface HeartbeatListener {
  /** The host may count as gone from now on: others may take what it has. */
  onTermOver(): void;
  /** It is there again, in another term: what it had may be somebody else's. */
  onNewTerm(term: number): void;
}

/**
 * The heartbeat of this host, by which the others know that it is there. A term lasts for as long as none came too late;
 * when one does, this host knows it at the latest when the others do.
 */
export class Heartbeat {
  readonly #context: Pick<ServeContext, "config" | "log" | "metrics">;
  readonly #hosts: Hosts;
  readonly #instance: string;
  readonly #listener: HeartbeatListener;
  #entry: HostEntry;
  #term = 0;
  /** `performance.now()` at which the term may be over: never later than for the others. */
  #end = 0;
  #beating: NodeJS.Timeout | undefined;
  #expiry: NodeJS.Timeout | undefined;
  #beat: Promise<unknown> = Promise.resolve();
  /** How many heartbeats were asked for, and which of them was answered last. */
  #asked = 0;
  #heard = 0;
  #isOver = false;
  #left = false;

  private constructor(
    context: Pick<ServeContext, "config" | "log" | "metrics">,
    hosts: Hosts,
    instance: string,
    listener: HeartbeatListener,
  ) {
    this.#context = context;
    this.#hosts = hosts;
    this.#instance = instance;
    this.#listener = listener;
    const startedAt = new Date().toISOString();
    this.#entry = { door: null, state: "serving", startedAt, storage: context.config.storage.shared };
  }

  /**
   * Enters this host. It takes users from when its front door is announced.
   *
   * @throws FleetError `FLEET_HOST_TAKEN`; `FLEET_STORAGE_UNUSABLE` when other hosts keep sessions in another kind of storage.
   */
  static async enter(
    context: Pick<ServeContext, "config" | "log" | "metrics" | "stateRoot">,
    hosts: Hosts,
    listener: HeartbeatListener,
  ): Promise<Heartbeat> {
    const { stateRoot } = context;
    const { shared } = context.config.storage;
    await refuseUnlike(hosts, shared);
    const before = (await hosts.list()).find(({ name }) => name === hosts.own);
    const isNoted = instanceOf(stateRoot) !== null;
    const { instance } = ensureNote(stateRoot, hosts.own);
    const heartbeat = new Heartbeat(context, hosts, instance, listener);
    try {
      // In this order: the beacon of another host that has this name stays as it is.
      await heartbeat.#send();
      if (shared !== null) heartbeat.#entry = { ...heartbeat.#entry, beacon: await lightBeacon(shared, hosts.own) };
      await heartbeat.#send();
      heartbeat.#next();
      // Once more: of two that enter at the same moment each sees the other by now.
      await refuseUnlike(hosts, shared);
    } catch (error) {
      const late = (failure: unknown) => noteTrouble(context, "what this host entered could not be undone", failure);
      await heartbeat.#withdraw(before).catch(late);
      if (before === undefined && !isNoted) removeNote(stateRoot);
      throw error;
    }
    return heartbeat;
  }

  /** As if it had never entered. @param before what the directory had of this host until then */
  async #withdraw(before: HostRecord | undefined): Promise<void> {
    if (this.#term === 0) return;
    const { shared } = this.#context.config.storage;
    // One whose serve died a moment ago is there yet, for the servers that it left: they are the next one's to adopt.
    await this.leave({ gone: before === undefined || before.gone });
    if (before !== undefined) return;
    await this.#hosts.forget(this.#hosts.own);
    if (shared !== null) await putOutBeacon(shared, this.#hosts.own, this.#entry.beacon);
  }

  /** The term in which this host is there at the moment; 0 when it may count as gone. */
  get term(): number {
    return this.#isOver ? 0 : this.#term;
  }

  /** Says where the other hosts reach the front door. */
  async announce(listening: Address | null): Promise<void> {
    const { advertise } = this.#context.config.host;
    if (advertise === null && listening !== null && isLoopback(listening)) {
      const message = "hosts on other machines cannot reach this front door, which listens on this one alone";
      this.#context.log("warn", message, { listen: showAddress(listening), set: "serve.listen or host.advertise" });
    }
    this.#entry = { ...this.#entry, door: listening === null ? null : showAddress(advertise ?? reachable(listening)) };
    await this.#send();
  }

  /** From here on nobody is placed here. */
  async closeToUsers(): Promise<void> {
    this.#entry = { ...this.#entry, state: "draining" };
    await this.#send();
  }

  /**
   * Ends the heartbeat. With `gone` the host counts as gone at once, since nothing is left on it; otherwise its servers are
   * another `serve`'s to go on with, in the same term if it comes in time.
   */
  async leave({ gone }: { gone: boolean }): Promise<void> {
    this.#left = true;
    clearTimeout(this.#beating);
    clearTimeout(this.#expiry);
    await this.#beat;
    if (gone) await this.#hosts.leave(this.#instance);
  }

  #next(afterMs = this.#context.config.host.ttlMs / BEATS): void {
    if (this.#left) return;
    clearTimeout(this.#beating);
    this.#beating = setTimeout(() => {
      this.#beat = this.#regular();
    }, afterMs);
    this.#beating.unref();
  }

  /** Never rejects. */
  async #regular(): Promise<void> {
    try {
      await this.#send();
      this.#next();
    } catch (error) {
      noteTrouble(this.#context, "the heartbeat of this host failed", error);
      this.#next(Math.max(RETRY_MS, this.#context.config.host.ttlMs / (BEATS * BEATS)));
    }
  }

  async #send(): Promise<void> {
    const { ttlMs } = this.#context.config.host;
    const asked = performance.now();
    const number = ++this.#asked;
    const { term } = await this.#hosts.beat(this.#instance, this.#entry, ttlMs);
    // The answer to one that was asked for before: a later one has told more already.
    if (this.#left || number < this.#heard) return;
    this.#heard = number;
    this.#end = asked + ttlMs;
    clearTimeout(this.#expiry);
    this.#expiry = setTimeout(() => this.#expire(), Math.max(0, this.#end - performance.now()));
    this.#expiry.unref();
    const before = this.#term;
    this.#term = term;
    if (before !== 0 && before !== term) {
      this.#expire(); // a process that was suspended has not heard of it
      this.#context.log("warn", "this host was gone for the others, and is there again", { before, term });
      this.#isOver = false;
      this.#listener.onNewTerm(term);
    }
    this.#isOver = false;
  }

  #expire(): void {
    if (this.#isOver || this.#left) return;
    this.#isOver = true;
    this.#context.log("error", "this host may count as gone: its heartbeat could not be renewed", { term: this.#term });
    this.#listener.onTermOver();
  }
}

/** An address that other machines can connect to, as far as one can tell: what listens everywhere goes by its host's name. */
function reachable({ host, port }: Address): Address {
  return host === "0.0.0.0" || host === "::" ? { host: hostname(), port } : { host, port };
}

/** @throws FleetError `FLEET_STORAGE_UNUSABLE` when the other hosts keep sessions elsewhere. */
export async function refuseUnlike(hosts: Hosts, shared: string | null): Promise<void> {
  const others = (await hosts.list()).filter(({ name }) => name !== hosts.own);
  refuseMixed(others, shared);
  if (shared !== null) await refuseOtherFolder(others, shared);
}

/** What is written into another folder the others would never see. */
async function refuseOtherFolder(others: readonly HostRecord[], shared: string): Promise<void> {
  const missing = await missingBeacons(shared, others);
  if (missing.length === 0) return;
  throw new FleetError(
    "FLEET_STORAGE_UNUSABLE",
    `The folder ${quote(shared)} is not the one that ${missing.map(quote).join(", ")} shares: nothing of it is there.`,
    { suggestions: [`findmnt --target ${shared}`, "copilotfleet doctor"] },
  );
}

function refuseMixed(others: readonly HostRecord[], shared: string | null): void {
  const other = others.find(({ gone, storage }) => !gone && (storage === null) !== (shared === null));
  if (other === undefined) return;
  const [here, there] = [shared, other.storage].map((folder) => (folder === null ? "its own disk" : quote(folder)));
  throw new FleetError(
    "FLEET_STORAGE_UNUSABLE",
    `This host keeps sessions on ${here}, and host ${quote(other.name)} on ${there}: all have to do the same.`,
    { suggestions: ["Set storage.shared on all hosts, or on none."] },
  );
}
