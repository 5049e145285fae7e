import { basename } from "node:path";
import { setImmediate } from "node:timers/promises";
import { parseObject } from "../../base/values/text.js";
import { countingLines, filesOf, type Head, LogFiles, NO_LINES } from "../../store/file/events.js";
import { type Conceal, hashHolds, type Line } from "./line.js";
import { Pseudonyms } from "./pseudonyms.js";

/** The first place at which the log differs from what was written. */
export interface EventsBreak {
  /** The number of the wrong line, or of the first missing line. */
  seq: number;
  /**
   * The name of the file with the problem, below the state folder's `events`; null if the problem is not in one file.
   */
  file: string | null;
  /** A description of the problem, such as `line 7 was changed`. */
  problem: string;
}

export interface Verified {
  /** How many events the log has. */
  events: number;
  brokenAt: EventsBreak | null;
}

/**
 * Verifies the log of this host: the hash of each line, the order of the lines, and whether the log still has the line
 * that `events-head.json` names as the newest.
 */
export async function verifyLog(stateRoot: string): Promise<Verified> {
  const files = new LogFiles(stateRoot);
  const verifier = new Verifier(Pseudonyms.ofExisting(stateRoot).all, files.readNote() ?? NO_LINES);
  for (let tries = 0; ; tries++) {
    verifier.restart();
    if (await readAll(files, verifier)) break;
    // Another process has moved lines into a segment. Read again.
    if (tries > 100) throw new Error("the audit log changed during every attempt to read it");
  }
  return verifier.end();
}

async function readAll(files: LogFiles, verifier: Verifier): Promise<boolean> {
  for (const file of filesOf(files)) {
    const lines = countingLines(file);
    if (lines === undefined) return false;
    for (const text of lines) verifier.line(text, basename(file.path));
    await setImmediate(); // Let a supervisor do other work in between.
  }
  return true;
}

class Verifier {
  readonly #conceals: readonly Conceal[];
  readonly #noted: Head;
  #last: Head | null = null;
  #first = 1;
  /** The hash of the line with the number of the noted head. */
  #notedHash: string | undefined;
  #shortenedTo = 0;
  #events = 0;
  #break: EventsBreak | null = null;

  constructor(conceals: readonly Conceal[], noted: Head) {
    this.#conceals = conceals;
    this.#noted = noted;
  }

  restart(): void {
    this.#last = null;
    this.#notedHash = undefined;
    this.#events = 0;
    this.#break = null;
    this.#shortenedTo = 0;
  }

  line(text: string, file: string): void {
    this.#events += 1;
    const line = readLine(text);
    const expected = this.#last === null ? null : this.#last.seq + 1;
    const fail = (seq: number, problem: string) => {
      this.#break ??= { seq, file, problem };
    };
    if (line === null) {
      fail(expected ?? 1, `the line after ${(expected ?? 1) - 1} cannot be read`);
      return;
    }
    const { seq, prev, hash } = line;
    if (!this.#conceals.some((conceal) => hashHolds(line, conceal))) fail(seq, `line ${seq} was changed`);
    if (expected === null) this.#first = seq;
    else if (seq > expected) fail(expected, `${linesBetween(expected, seq - 1)} missing before line ${seq}`);
    else if (seq < expected) fail(seq, `line ${seq} is not in its place, after line ${expected - 1}`);
    else if (prev !== this.#last?.hash) fail(seq, `line ${seq} does not follow from line ${seq - 1}`);
    if (line.type === "events.shortened") this.#shortenedTo = Math.max(this.#shortenedTo, Number(line.reason));
    if (seq === this.#noted.seq) this.#notedHash = hash;
    if (this.#last === null || seq >= this.#last.seq) this.#last = { seq, hash };
  }

  end(): Verified {
    const last = this.#last ?? NO_LINES;
    if (this.#last !== null && this.#first > 1 && this.#shortenedTo < this.#first - 1) {
      const problem = `${linesBetween(1, this.#first - 1)} missing at the beginning`;
      this.#break = { seq: 1, file: null, problem };
    }
    const { seq, hash } = this.#noted;
    if (seq > last.seq)
      this.#break ??= {
        seq: last.seq + 1,
        file: null,
        problem: `${linesBetween(last.seq + 1, seq)} missing at the end`,
      };
    else if (this.#notedHash !== undefined && this.#notedHash !== hash)
      this.#break ??= { seq, file: null, problem: `line ${seq} is not the one that was noted` };
    return { events: this.#events, brokenAt: this.#break };
  }
}

function linesBetween(from: number, to: number): string {
  return from === to ? `line ${from} is` : `lines ${from} to ${to} are`;
}

/** Parses a line of the log; null if the text is not such a line. */
export function readLine(text: string): Line | null {
  const line = parseObject(text);
  if (line === undefined || typeof line.seq !== "number" || typeof line.hash !== "string") return null;
  return typeof line.actor === "object" && line.actor !== null && typeof line.prev === "string"
    ? (line as unknown as Line)
    : null;
}
