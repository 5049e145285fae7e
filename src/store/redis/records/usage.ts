import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { quote } from "../../../errors.js";
import {
  countsOf,
  dayOf,
  hourOf,
  hourStart,
  keyOf,
  type LedgerLine,
  plus,
  USAGE_COUNTS,
  type UsagePart,
  UsageParts,
  type UsageQuery,
} from "../../../model/usage/usage.js";
import { isDamaged } from "../../failures.js";
import { mediumError } from "../../file/failures.js";
import { ensureStateFolder } from "../../file/state-folder.js";
import { folderIdOf } from "../../usage/folder-id.js";
import type { Renaming, UsageStore } from "../../usage/port.js";
import { Segments } from "../../usage/segments.js";
import { soundLines } from "../../usage/sound-lines.js";
import { LATE_MS, renamed } from "../../usage/usage-folder.js";
import type { Connection } from "../link/connection.js";
import type { Keys } from "../link/keys.js";
import * as scripts from "../scripts/usage-scripts.js";

const HOUR_MS = 3_600_000;
/** How long the lines of an hour are kept beside its sums. Afterwards, a query counts the whole hour or nothing of it. */
const LINES_MS = 49 * HOUR_MS;
/** A limit counts at most a month. */
const TOKENS_MS = 33 * 24 * HOUR_MS;
/** How long a line may wait before it is sent, in milliseconds. */
const JOIN_MS = 50;
const AT_ONCE = 1_000;

/**
 * The fields of a hash of sums begin with one of these letters, in the order of {@link USAGE_COUNTS}. The rest is JSON: user,
 * session, model and token id.
 */
const LETTERS = ["t", "r", "i", "o", "h", "c"];

type Cell = [user: string, sessionId: string, model: string | null, tokenId: string | null];

/**
 * The ledger of all hosts. The lines of this host are first in segments on its disk, and are then sent to Redis in order. Any
 * process of the host can do that, so a process that dies loses nothing.
 */
export class UsageSums implements UsageStore {
  readonly #connection: Connection;
  readonly #keys: Keys;
  readonly #segments: Segments;
  readonly #warn: (message: string) => void;
  /** How far each segment has been counted, as far as this process knows. */
  readonly #counted = new Map<string, number>();
  #running: Promise<void> = Promise.resolve();
  /** The run that has not begun. */
  #next: Promise<void> | undefined;
  #soon: NodeJS.Timeout | undefined;

  /** @param warn reports lines that do not count */
  constructor(connection: Connection, keys: Keys, root: string, warn: (message: string) => void) {
    this.#connection = connection;
    this.#keys = keys;
    this.#warn = warn;
    this.#segments = new Segments(join(root, "usage"), () => ensureStateFolder(root));
  }

  append(lines: readonly LedgerLine[]): number {
    try {
      return this.#segments.append(lines);
    } catch (error) {
      throw mediumError("write", this.#segments.folder, error);
    } finally {
      // A pause joins the lines of a turn.
      this.#soon ??= setTimeout(() => void this.settled(), JOIN_MS).unref();
    }
  }

  async settled(): Promise<void> {
    // If Redis does not take the lines, they stay on the disk, and a later call sends them.
    await this.#send().catch((error: unknown) => {
      const wait = `Lines of the ledger do not count, and wait in ${quote(this.#segments.folder)}.`;
      if (isDamaged(error)) this.#warn(`${wait} ${error.message}`);
    });
  }

  /** Sends what is on the disk. Calls during a run share the next one, because that run may have passed their lines. */
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
        const [, counted, ...left] = await this.#connection.run(
          scripts.COUNT_USAGE,
          [this.#keys.usageRead, this.#keys.usageHours, ...keys],
          [name, piece.from, piece.end, JSON.stringify(hours)],
        );
        this.#counted.set(name, Number(counted));
        for (const key of left)
          this.#warn(`The ledger leaves out amounts, because ${quote(String(key))} in Redis is damaged.`);
      }
    });
  }

  /** The amounts that the script adds. Numbers are texts, because Lua would round large ones. */
  #partOf(lines: readonly LedgerLine[]) {
    const hours = new Map<number, LedgerLine[]>();
    for (const line of lines) {
      const those = hours.get(hourOf(line.at));
      if (those === undefined) hours.set(hourOf(line.at), [line]);
      else those.push(line);
    }
    const keys: string[] = [];
    const parts = [...hours].map(([hour, those]) => {
      const sums = new Map<string, number>();
      const tokens = new Map<string, number>();
      const add = (to: Map<string, number>, name: string, amount: number | null) => {
        if (amount !== null) to.set(name, (to.get(name) ?? 0) + amount);
      };
      for (const line of those) {
        const counts = countsOf(line);
        const cell = JSON.stringify([line.user, line.sessionId, line.model, line.tokenId] satisfies Cell);
        for (const [index, count] of USAGE_COUNTS.entries()) add(sums, LETTERS[index] + cell, counts[count]);
        add(tokens, line.user, (counts.inputTokens ?? 0) + (counts.outputTokens ?? 0));
      }
      const day = dayOf(hourStart(hour));
      keys.push(this.#keys.usageSums(hour), this.#keys.usageLines(hour), this.#keys.usageTokens(day));
      const texts = (map: Map<string, number>) => [...map].map(([name, amount]) => [name, String(amount)]);
      return {
        hour: String(hour),
        sums: texts(sums),
        tokens: texts(tokens),
        lines: those.map((line) => JSON.stringify(line)),
        linesUntil: String(hourStart(hour) + LINES_MS),
        tokensUntil: String(hourStart(hour) + TOKENS_MS),
      };
    });
    return { keys, hours: parts };
  }

  async read(query: UsageQuery): Promise<UsagePart[]> {
    await this.settled();
    const parts = new UsageParts(query.user);
    const { from, to, by } = query;
    // Most cells come again in each hour, and to parse their names takes longer than everything else.
    const places = new Map<string, number | null>();
    for (const hour of await this.#hours(hourOf(from), hourOf(to))) {
      const isWhole = hourStart(hour) >= from && hourStart(hour + 1) <= to;
      const lines = isWhole ? [] : await this.#linesOf(hour);
      for (const line of lines.map((text) => JSON.parse(text) as LedgerLine)) {
        const at = Date.parse(line.at);
        if (at >= from && at < to) parts.add(keyOf(line, by), line.user, line.model, countsOf(line));
      }
      if (lines.length > 0) continue;
      const at = new Date(hourStart(hour)).toISOString();
      const prefix = by === "day" ? dayOf(at) : "";
      for (const [offset, cell, amount] of await this.#sumsOf(hour)) {
        let place = places.get(prefix + cell);
        if (place === undefined) {
          const [user, sessionId, model, tokenId] = JSON.parse(cell) as Cell;
          place = parts.placeOf(keyOf({ user, sessionId, model, tokenId, at }, by), user, model);
          places.set(prefix + cell, place);
        }
        if (place !== null) parts.counts[place + offset] = plus(parts.counts[place + offset], amount);
      }
    }
    return parts.all;
  }

  async #hours(first: number, last: number): Promise<number[]> {
    const [, ...hours] = await this.#connection.run(scripts.USAGE_HOURS, [this.#keys.usageHours], [first, last]);
    return hours.map(Number);
  }

  async #linesOf(hour: number): Promise<string[]> {
    const [, ...lines] = await this.#connection.run(scripts.USAGE_LINES, [this.#keys.usageLines(hour)], []);
    return lines.map(String);
  }

  /** The sums of an hour: the place of the count among {@link USAGE_COUNTS}, the text of the cell, and the amount. */
  async #sumsOf(hour: number): Promise<[offset: number, cell: string, amount: number][]> {
    const [, ...sums] = await this.#connection.run(scripts.USAGE_SUMS, [this.#keys.usageSums(hour)], []);
    const found: [number, string, number][] = [];
    for (let index = 0; index < sums.length; index += 2) {
      const name = String(sums[index]);
      const offset = LETTERS.indexOf(name.charAt(0));
      if (offset !== -1) found.push([offset, name.slice(1), Number(sums[index + 1])]);
    }
    return found;
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
    const { users, sessions } = names;
    this.#segments.seal();
    this.#segments.endLines();
    await sleep(LATE_MS);
    await this.#send();
    await this.#dropSent();
    for (const hour of await this.#hours(0, hourOf(Date.now()) + 1)) {
      const sums = new Set((await this.#sumsOf(hour)).map(([, cell]) => cell));
      const cells = [...sums].flatMap((before) => {
        const [user, sessionId, model, tokenId] = JSON.parse(before) as Cell;
        const after = JSON.stringify([users.get(user) ?? user, sessions.get(sessionId) ?? sessionId, model, tokenId]);
        return before === after ? [] : LETTERS.flatMap((letter) => [letter + before, letter + after]);
      });
      await this.#runInParts(scripts.RENAME_USAGE, this.#keys.usageSums(hour), cells, 2);
      const lines = (await this.#linesOf(hour)).flatMap((text, index) => {
        const line = JSON.parse(text) as LedgerLine;
        const after = renamed(line, names);
        return after === line ? [] : [String(index), text, JSON.stringify(after)];
      });
      await this.#runInParts(scripts.RENAME_LINES, this.#keys.usageLines(hour), lines, 3);
    }
    const pairs = [...users].flat();
    for (let at = Date.now() - TOKENS_MS; at < Date.now() + 24 * HOUR_MS; at += 24 * HOUR_MS)
      await this.#runInParts(scripts.RENAME_USAGE, this.#keys.usageTokens(dayOf(at)), pairs, 2);
  }

  async #runInParts(script: typeof scripts.RENAME_USAGE, key: string, args: readonly string[], unit: number) {
    for (let at = 0; at < args.length; at += AT_ONCE * unit)
      await this.#connection.run(script, [key], args.slice(at, at + AT_ONCE * unit));
  }

  async upkeep(keepMs: number): Promise<void> {
    await this.#segments.sealOld();
    this.#segments.endLines();
    await sleep(LATE_MS);
    await this.settled();
    await this.#dropSent();
    for (const hour of await this.#hours(0, hourOf(Date.now() - keepMs) - 1)) {
      const { usageHours, usageSums, usageLines } = this.#keys;
      await this.#connection.run(scripts.DROP_USAGE, [usageHours, usageSums(hour), usageLines(hour)], [hour]);
    }
  }

  /** Deletes the sealed segments of which Redis has all lines. */
  async #dropSent(): Promise<void> {
    for (const number of this.#segments.numbers().slice(0, -1)) {
      const name = this.#nameOf(number);
      if (this.#counted.get(name) !== this.#segments.stateOf(number).size) return;
      // A fleet that came from the file store also has sums.
      this.#segments.remove(number);
      this.#counted.delete(name);
      await this.#connection.run(scripts.DROP_USAGE_READ, [this.#keys.usageRead], [name]);
    }
  }

  async close(): Promise<void> {
    if (this.#soon !== undefined) await this.settled();
    await this.#running.catch(() => undefined);
    await this.#segments.close();
  }

  /** The name of a segment among those of all hosts. It contains a random id of the folder, which may be replaced. */
  #nameOf(number: number): string {
    return `${folderIdOf(this.#segments.folder)}:${number}`;
  }
}
