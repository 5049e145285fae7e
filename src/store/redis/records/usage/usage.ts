import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { quote } from "../../../../errors.js";
import {
  dayOf,
  hourOf,
  hourStart,
  type LedgerLine,
  type UsagePart,
  UsageParts,
  type UsageQuery,
} from "../../../../model/usage/usage.js";
import { isDamaged } from "../../../failures.js";
import { mediumError } from "../../../file/failures.js";
import { ensureStateFolder } from "../../../file/state-folder.js";
import { folderIdOf } from "../../../usage/folder-id.js";
import type { Renaming, UsageStore } from "../../../usage/port.js";
import { Segments } from "../../../usage/segments.js";
import { soundLines } from "../../../usage/sound-lines.js";
import { LATE_MS } from "../../../usage/usage-folder.js";
import type { Connection } from "../../link/connection.js";
import type { Keys } from "../../link/keys.js";
import * as scripts from "../../scripts/usage-scripts.js";
import { partsOf } from "./hour-records.js";
import { LAG, RENAMES_AT_ONCE, UsageHours } from "./usage-hours.js";

const HOUR_MS = 3_600_000;
/** How long the tokens of a day are kept, in milliseconds. No limit counts tokens for longer than a month. */
const TOKENS_MS = 33 * 24 * HOUR_MS;
/** How long a line may wait before it is sent, in milliseconds. */
const JOIN_MS = 50;

/**
 * The ledger of all hosts. Each host first writes its lines to segments on its disk, and then sends them to Redis in
 * order. Any process of the host can send them, so nothing is lost if a process dies.
 */
export class UsageSums implements UsageStore {
  readonly #connection: Connection;
  readonly #keys: Keys;
  readonly #segments: Segments;
  readonly #hours: UsageHours;
  readonly #warn: (message: string) => void;
  /** How many bytes of each segment Redis has counted, as far as this process knows. */
  readonly #counted = new Map<string, number>();
  readonly #addingUp = new Set<Promise<void>>();
  #running: Promise<void> = Promise.resolve();
  /** A run of `#sendAll` that has not begun, because it waits for the run before it. */
  #next: Promise<void> | undefined;
  #soon: NodeJS.Timeout | undefined;

  /** @param warn receives a message when lines or amounts do not count */
  constructor(connection: Connection, keys: Keys, root: string, warn: (message: string) => void) {
    this.#connection = connection;
    this.#keys = keys;
    this.#warn = warn;
    this.#hours = new UsageHours(connection, keys, warn);
    this.#segments = new Segments(join(root, "usage"), () => ensureStateFolder(root));
  }

  append(lines: readonly LedgerLine[]): number {
    try {
      return this.#segments.append(lines);
    } catch (error) {
      throw mediumError("write", this.#segments.folder, error);
    } finally {
      // Wait a moment, so that the lines of one turn are sent together.
      this.#soon ??= setTimeout(() => void this.settled(), JOIN_MS).unref();
    }
  }

  async settled(): Promise<void> {
    // If Redis does not accept the lines, they stay on the disk, and a later call sends them.
    await this.#send().catch((error: unknown) => {
      const wait = `Lines of the ledger do not count, and wait in ${quote(this.#segments.folder)}.`;
      if (isDamaged(error)) this.#warn(`${wait} ${error.message}`);
    });
  }

  /** Sends the lines on disk. Calls during a run share the next run, because the current run may miss their lines. */
  async #send(): Promise<void> {
    clearTimeout(this.#soon);
    this.#soon = undefined;
    if (this.#next === undefined) {
      this.#next = this.#running.catch(() => undefined).then(async () => await this.#sendAll());
      this.#running = this.#next;
    }
    await this.#next;
  }

  async #sendAll(): Promise<void> {
    this.#next = undefined;
    let damage: unknown;
    for (const number of this.#segments.numbers()) {
      try {
        await this.#sendSegment(number);
      } catch (error) {
        if (!isDamaged(error)) throw error;
        damage ??= error; // later segments may have no line for the damaged key
      }
    }
    if (damage !== undefined) throw damage;
  }

  async #sendSegment(number: number): Promise<void> {
    const { size } = this.#segments.stateOf(number);
    const name = this.#nameOf(number);
    let at = this.#counted.get(name);
    if (at === size) return;
    at ??= Number((await this.#connection.run(scripts.USAGE_READ, [this.#keys.usageRead], [name]))[1]);
    this.#counted.set(name, at);
    await this.#segments.using(number, async (segment) => {
      for (;;) {
        const [piece] = segment.pieces(this.#counted.get(name));
        if (piece === undefined) return;
        const { keys, hours } = this.#partOf(soundLines(piece.lines, this.#warn));
        const { usageRead, usageHours, usageLined } = this.#keys;
        const [, counted, damaged, behind] = await this.#connection.run(
          scripts.COUNT_USAGE,
          [usageRead, usageHours, usageLined, ...keys],
          [name, piece.from, piece.end, JSON.stringify(hours), LAG.lines, LAG.share, randomUUID()],
        );
        this.#counted.set(name, Number(counted));
        for (const key of damaged as string[])
          this.#warn(`The ledger leaves out amounts, because ${quote(key)} in Redis is damaged.`);
        for (const hour of behind as string[]) this.#addUpLater(Number(hour));
      }
    });
  }

  /** Adds up an hour in the background. Budget checks do not wait for it, because they read only the token counts. */
  #addUpLater(hour: number): void {
    const addingUp = this.#hours
      .extendOrWarn(hour)
      .catch(() => undefined) // a query or the upkeep adds it up later
      .finally(() => this.#addingUp.delete(addingUp));
    this.#addingUp.add(addingUp);
  }

  /** The lines and tokens that `COUNT_USAGE` adds. Numbers are texts, because Lua would round large numbers. */
  #partOf(lines: readonly LedgerLine[]) {
    const byHour = new Map<number, LedgerLine[]>();
    for (const line of lines) {
      const those = byHour.get(hourOf(line.at));
      if (those === undefined) byHour.set(hourOf(line.at), [line]);
      else those.push(line);
    }
    const keys: string[] = [];
    const hours = [...byHour].map(([hour, those]) => {
      const tokens = new Map<string, number>();
      for (const { user, inputTokens, outputTokens } of those)
        tokens.set(user, (tokens.get(user) ?? 0) + (inputTokens ?? 0) + (outputTokens ?? 0));
      const day = dayOf(hourStart(hour));
      keys.push(this.#keys.usageSums(hour), this.#keys.usageLines(hour), this.#keys.usageTokens(day));
      return {
        hour: String(hour),
        tokens: [...tokens].map(([user, amount]) => [user, String(amount)]),
        tokensUntil: String(hourStart(hour) + TOKENS_MS),
        lines: those.map((line) => JSON.stringify(line)),
      };
    });
    return { keys, hours };
  }

  async read(query: UsageQuery): Promise<UsagePart[]> {
    await this.settled();
    const parts = new UsageParts(query.user);
    await this.#hours.addTo(parts, query);
    return parts.all;
  }

  async tokensSince(user: string, from: number): Promise<number> {
    await this.settled();
    const keys: string[] = [];
    for (let at = from; dayOf(at) <= dayOf(Date.now()); at += 24 * HOUR_MS)
      keys.push(this.#keys.usageTokens(dayOf(at)));
    const [, tokens] = await this.#connection.run(scripts.USAGE_TOKENS, keys, [user]);
    return Number(tokens);
  }

  async rename(names: Renaming): Promise<void> {
    this.#segments.seal();
    await sleep(LATE_MS);
    await this.#send();
    await this.#dropSent();
    const hours = await this.#hours.all();
    await this.#hours.rename(hours, names);
    const pairs = [...names.users].flat();
    // Rename in the days of all hours, some of which may be in the future. Also rename in all recent days, because the
    // tokens of a day may be kept for longer than its hours.
    const days = new Set(hours.map((hour) => dayOf(hourStart(hour))));
    for (let at = Date.now() - TOKENS_MS; at < Date.now() + 24 * HOUR_MS; at += 24 * HOUR_MS) days.add(dayOf(at));
    for (const day of days) {
      for (const part of partsOf(pairs, RENAMES_AT_ONCE * 2))
        await this.#connection.run(scripts.RENAME_TOKENS, [this.#keys.usageTokens(day)], part);
    }
  }

  async upkeep(keepMs: number): Promise<void> {
    await this.#segments.sealOld();
    await sleep(LATE_MS);
    await this.settled();
    await this.#dropSent();
    await this.#hours.upkeep(keepMs);
  }

  /** Deletes sealed segments, the oldest first, up to the first segment that Redis has not counted completely. */
  async #dropSent(): Promise<void> {
    for (const number of this.#segments.numbers().slice(0, -1)) {
      const name = this.#nameOf(number);
      if (this.#counted.get(name) !== this.#segments.stateOf(number).size) return;
      // This also deletes the sums beside the segment, which a fleet has if it used the file store before.
      this.#segments.remove(number);
      this.#counted.delete(name);
      await this.#connection.run(scripts.DROP_USAGE_READ, [this.#keys.usageRead], [name]);
    }
  }

  async close(): Promise<void> {
    if (this.#soon !== undefined) await this.settled();
    await this.#running.catch(() => undefined);
    await Promise.all(this.#addingUp);
    await this.#segments.close();
  }

  /** The name of a segment, unique among all hosts. It contains the random id of the folder, which may be replaced. */
  #nameOf(number: number): string {
    return `${folderIdOf(this.#segments.folder)}:${number}`;
  }
}
