import { setImmediate } from "node:timers/promises";
import { type Conceal, hashHolds, readLine } from "./line.js";
import { AuditLog, type Head, NO_LINES, type Stored } from "./log.js";
import { Pseudonyms } from "./pseudonyms.js";

/** The first place at which the log differs from what was written. */
export interface EventsBreak {
  /** The number of the wrong line, or of the first missing line. */
  seq: number;
  /** A description of the problem, such as `line 7 was changed`. */
  problem: string;
}

export interface Verified {
  /** How many events the log has. */
  events: number;
  brokenAt: EventsBreak | null;
}

/** How many lines to read at once. */
const AT_ONCE = 1_000;

/**
 * Verifies the log of this host: the hash of each line, the order of the lines, and whether the log still has the line
 * that `events-head.json` names as the newest.
 */
export async function verifyLog(stateRoot: string): Promise<Verified> {
  const log = AuditLog.of(stateRoot);
  const verifier = new Verifier(Pseudonyms.ofExisting(stateRoot).all, log.readNote() ?? NO_LINES);
  for (let after = -1; ; ) {
    const lines = await log.linesAfter(after, AT_ONCE);
    for (const line of lines) verifier.line(line);
    if (lines.length < AT_ONCE) return verifier.end();
    after = lines.at(-1)?.seq ?? after;
    await setImmediate(); // Let a supervisor do other work in between.
  }
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

  line({ seq: number, text }: Stored): void {
    this.#events += 1;
    const line = readLine(text);
    const expected = this.#last === null ? null : this.#last.seq + 1;
    const fail = (seq: number, problem: string) => {
      this.#break ??= { seq, problem };
    };
    if (line === null) {
      fail(number, `line ${number} cannot be read`);
      return;
    }
    const { seq, prev, hash } = line;
    if (!this.#conceals.some((conceal) => hashHolds(line, conceal))) fail(seq, `line ${seq} was changed`);
    if (seq !== number) fail(number, `line ${seq} is not in its place, as number ${number}`);
    if (expected === null) this.#first = seq;
    else if (seq > expected) fail(expected, `${linesBetween(expected, seq - 1)} missing before line ${seq}`);
    else if (prev !== this.#last?.hash) fail(seq, `line ${seq} does not follow from line ${seq - 1}`);
    if (line.type === "events.shortened") this.#shortenedTo = Math.max(this.#shortenedTo, Number(line.reason));
    if (seq === this.#noted.seq) this.#notedHash = hash;
    this.#last = { seq, hash };
  }

  end(): Verified {
    const last = this.#last ?? NO_LINES;
    if (this.#last !== null && this.#first > 1 && this.#shortenedTo < this.#first - 1) {
      const problem = `${linesBetween(1, this.#first - 1)} missing at the beginning`;
      this.#break = { seq: 1, problem };
    }
    const { seq, hash } = this.#noted;
    if (seq > last.seq)
      this.#break ??= {
        seq: last.seq + 1,
        problem: `${linesBetween(last.seq + 1, seq)} missing at the end`,
      };
    else if (this.#notedHash !== undefined && this.#notedHash !== hash)
      this.#break ??= { seq, problem: `line ${seq} is not the one that was noted` };
    return { events: this.#events, brokenAt: this.#break };
  }
}

function linesBetween(from: number, to: number): string {
  return from === to ? `line ${from} is` : `lines ${from} to ${to} are`;
}
