import {
  closeSync,
  constants,
  fstatSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../../../errors.js";
import { scratchName, unlinkQuietly } from "../../commit/durable.js";
import { type Answer, type Entry, readEntry, SlotState } from "./slot-state.js";

/** A log that is longer than this, in bytes, may be sealed: see {@link SlotLog.isLong}. */
const LONGEST = 64 * 1024;
const NAME = /^([a-z0-9]{8})-(\d{1,12})\.log$/;

/**
 * A log of the slots that one user has in use. Every process appends to it, with one write for each entry. The
 * operating system puts the entries in one order. Each process reads the log and applies the same rules, so all
 * processes agree on which entries were granted. So the limits are exact without a lock, and a process that is killed
 * at any point leaves nothing half done.
 *
 * The first `seal` entry ends a log: later entries in it do not count, and their writers append them to the next log.
 * Every process computes the same first entries for the next log, so it does not matter which process creates it.
 *
 * Nothing here is synced to disk, because no slot survives a restart of the machine: a log's name contains the boot,
 * and logs of earlier boots are ignored.
 */
export class SlotLog {
  readonly #folder: string;
  readonly #boot: string;
  /** The log that was read last: its number, its inode, the bytes read so far, and the state after these bytes. */
  #number = -1;
  #inode = -1;
  #offset = 0;
  #state = new SlotState();
  /** How many entries were read. Many of them may no longer affect the state. */
  #entries = 0;
  /** Entries that free slots, but could not be written (a full disk). The next `append` writes them before its own. */
  #unwritten: Entry[] = [];

  /** @param boot 8 letters and digits that name the boot of the machine */
  constructor(folder: string, boot: string) {
    this.#folder = folder;
    this.#boot = boot;
  }

  /** The current state. */
  read(): SlotState {
    if (this.#numbers().length > 0) this.#use((fd) => this.#follow(fd));
    return this.#state;
  }

  /** Appends an entry. @returns the answer to it. @throws a system error if it cannot be written */
  append(entry: Entry): Answer {
    for (;;) {
      const answer = this.#use((fd) => {
        writeEntries(fd, [...this.#unwritten, entry]);
        return this.#follow(fd, entry);
      });
      if (answer === undefined) continue; // others have sealed the log before this entry
      this.#unwritten = [];
      return answer;
    }
  }

  /** Like {@link append}, for an entry that frees a slot. If it cannot be written now, the next call writes it. */
  appendLater(entry: Entry): void {
    try {
      this.append(entry);
    } catch (error) {
      if (systemCode(error) === undefined) throw error;
      if (!this.#unwritten.includes(entry)) this.#unwritten.push(entry);
    }
  }

  /** Whether the log should be sealed now. If most of its entries still count, sealing would only copy them. */
  get isLong(): boolean {
    return this.#offset > LONGEST && this.#entries > 2 * this.#state.size;
  }

  seal(): void {
    this.#use((fd) => {
      writeEntries(fd, [["seal"]]);
      this.#follow(fd);
    });
  }

  /** Calls `work` with the newest log that is not sealed. Creates that log if necessary. */
  #use<T>(work: (fd: number) => T): T {
    for (;;) {
      const fd = this.#open();
      if (fd === undefined) continue;
      try {
        const { ino, size } = fstatSync(fd);
        if (ino !== this.#inode || size < this.#offset) {
          this.#inode = ino;
          this.#offset = 0;
          this.#entries = 0;
          this.#state = new SlotState();
        }
        this.#follow(fd);
        if (!this.#state.isSealed) return work(fd);
      } finally {
        closeSync(fd);
      }
      this.#create(this.#number + 1, this.#state.start());
    }
  }

  /** Opens the log. @returns undefined if it disappeared, because other processes have sealed it and the next log */
  #open(): number | undefined {
    if (this.#number < 0 || this.#state.isSealed) {
      const newest = this.#numbers().at(-1);
      if (newest === undefined) this.#create(0, []);
      this.#number = this.#numbers().at(-1) ?? 0;
      // Forget the inode number, because this log may have the number of a deleted log.
      this.#inode = -1;
    }
    try {
      return openSync(this.#path(this.#number), constants.O_RDWR | constants.O_APPEND);
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw error;
      this.#number = -1;
      return undefined;
    }
  }

  /** Creates a log with its first entries, unless it exists. Removes older logs, except the one directly before it. */
  #create(number: number, entries: readonly Entry[]): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    const temp = join(this.#folder, scratchName("tmp"));
    try {
      writeFileSync(temp, textOf(entries), { flag: "wx", mode: 0o600 });
      linkSync(temp, this.#path(number));
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
    } finally {
      unlinkQuietly(temp);
    }
    for (const name of readdirSync(this.#folder)) {
      const [, boot, older] = NAME.exec(name) ?? [];
      const isOld = boot !== undefined && (boot !== this.#boot || Number(older) < number - 1);
      if (isOld) rmSync(join(this.#folder, name), { force: true });
    }
  }

  /** Reads what was appended since the last read. @returns the answer to `own`, or undefined if it is not in the log */
  #follow(fd: number, own?: Entry): Answer | undefined {
    let answer: Answer | undefined;
    const ownLine = own === undefined ? undefined : JSON.stringify(own);
    const bytes = Buffer.alloc(Math.max(0, fstatSync(fd).size - this.#offset));
    const length = bytes.length === 0 ? 0 : readSync(fd, bytes, 0, bytes.length, this.#offset);
    // Leave out an incomplete last line, because another process may still be writing it.
    const end = bytes.lastIndexOf(10, length - 1) + 1;
    this.#offset += end;
    for (const line of bytes.toString("utf8", 0, end).split("\n")) {
      const entry = readEntry(line);
      if (entry === null || this.#state.isSealed) continue;
      this.#entries++;
      const given = this.#state.apply(entry);
      if (line === ownLine) answer = given;
    }
    return answer;
  }

  /** The numbers of the logs of this boot, in order. */
  #numbers(): number[] {
    try {
      return readdirSync(this.#folder)
        .flatMap((name) => {
          const [, boot, number] = NAME.exec(name) ?? [];
          return boot === this.#boot ? [Number(number)] : [];
        })
        .sort((a, b) => a - b);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      throw error;
    }
  }

  #path(number: number): string {
    return join(this.#folder, `${this.#boot}-${number}.log`);
  }
}

/** An entry begins with an empty line, so that it does not continue a line that a full disk has cut off. */
function textOf(entries: readonly Entry[]): string {
  return entries.map((entry) => `\n${JSON.stringify(entry)}\n`).join("");
}

function writeEntries(fd: number, entries: readonly Entry[]): void {
  const bytes = Buffer.from(textOf(entries));
  const written = writeSync(fd, bytes);
  if (written < bytes.length) throw Object.assign(new Error("write() wrote a part"), { code: "ENOSPC" });
}
