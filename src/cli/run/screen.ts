import { EventEmitter } from "node:events";
import { emitKeypressEvents, type Key as ReadlineKey } from "node:readline";
import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";
import { either } from "../../base/clock.js";
import { widthOf } from "../render/layout.js";
import { shorten } from "../render/table.js";

/** Turns on and off: the alternate screen without line wrapping, or the marks around a pasted text. */
const FULL = { enter: "\x1b[?1049h\x1b[?25l\x1b[?7l", leave: "\x1b[?7h\x1b[?25h\x1b[?1049l" };
const INLINE = { enter: "\x1b[?2004h", leave: "\x1b[?2004l\x1b[?25h" };
/** Terminals that support these two sequences show everything between them at once. Other terminals ignore them. */
const [BEGIN, END] = ["\x1b[?2026h\x1b[?25l", "\x1b[?2026l"];
const [HOME, CLEAR_BELOW, SHOW_CURSOR] = ["\x1b[H", "\x1b[J", "\x1b[?25h"];

export interface Key {
  /** The text that the key types; empty for keys such as the arrows. */
  text: string;
  /** The name that `node:readline` gives the key, after its modifiers: `up`, `ctrl-c`, `meta-return`. */
  name: string;
  raw: ReadlineKey;
}

export interface ScreenSize {
  rows: number;
  columns: number;
}

interface Cursor {
  row: number;
  column: number;
}

/** Rows that are drawn again with each change, and the cursor in them. No row is wider than the terminal. */
export interface LiveRows {
  rows: readonly string[];
  /** Null hides the cursor. */
  cursor: Cursor | null;
}

/**
 * Reads keys and pasted text, and draws, until it is disposed. Takes over the whole terminal (`full`), or draws at the
 * end of the text on it. Emits `resize` when everything must be drawn again, and `gone` when the terminal is gone.
 */
export class Screen extends EventEmitter<{ key: [Key]; paste: [string]; resize: []; gone: [] }> implements Disposable {
  readonly #isFull: boolean;
  /** The widths of the live rows, and the position of the cursor in them, as they were last drawn. */
  #drawn: { widths: number[]; cursor: Cursor | null } = { widths: [], cursor: null };
  /** Whether the input may have been typed outside raw mode: before the start, or while the process was stopped. */
  #isCooked = true;
  /** The text that is being pasted; null outside of a paste. */
  #pasted: string | null = null;
  /** node:readline reads the keys from this stream and decodes them. */
  readonly #keys = new Readable({ read: () => undefined });
  readonly #onData = (chunk: string) => this.#receive(chunk);
  readonly #onResize = () => void this.emit("resize");
  readonly #onContinue = () => this.#open();
  readonly #onExit = () => this.#restore();
  readonly #onGone = () => {
    if (!this.emit("gone")) endBySignal();
    process.off("exit", endBySignal).once("exit", endBySignal);
  };

  constructor({ full }: { full: boolean }) {
    super();
    this.#isFull = full;
    emitKeypressEvents(this.#keys);
    this.#keys.on("keypress", (text: string | undefined, key: ReadlineKey) => this.#press(text, key));
    const { stdin, stdout } = process;
    // Never remove this listener for errors, because turning raw mode off also causes one if the terminal is gone.
    stdin.setEncoding("utf8").on("data", this.#onData).once("end", this.#onGone).on("error", this.#onGone);
    // Replace the listeners of oclif and main.ts, which would throw the error of a vanished terminal.
    stdout.removeAllListeners("error").on("error", this.#onGone).on("resize", this.#onResize);
    // A second Ctrl-C ends the process without disposing this object, so also restore the terminal at the exit.
    process.on("SIGHUP", this.#onGone).on("SIGCONT", this.#onContinue).once("exit", this.#onExit);
    this.#open();
  }

  /** The size of the terminal. Some terminals report 0 rows or columns, for which this returns 24 and 80. */
  get size(): ScreenSize {
    const { rows, columns } = process.stdout;
    return { rows: rows > 0 ? rows : 24, columns: columns > 0 ? columns : 80 };
  }

  /** Draws the live rows again, below the rows in `above`, which scroll away and are never drawn again. */
  draw({ rows, cursor }: LiveRows, above: readonly string[] = []): void {
    const up = rows.length - 1 - (cursor?.row ?? 0);
    const toCursor = [up > 0 ? `\x1b[${up}A` : "", "\r", cursor?.column ? `\x1b[${cursor.column}C` : "", SHOW_CURSOR];
    process.stdout.write(
      [
        ...[BEGIN, this.#isFull ? HOME : this.#toTop(), CLEAR_BELOW, ...above.map((row) => `${row}\r\n`)],
        ...[rows.join("\r\n"), ...(cursor === null ? [] : toCursor), END],
      ].join(""),
    );
    this.#drawn = { widths: rows.map((row) => widthOf(stripVTControlCharacters(row))), cursor };
  }

  /** The sequence that moves the cursor to the first live row. On a narrower terminal, a row may take several rows. */
  #toTop(): string {
    const { widths, cursor } = this.#drawn;
    const rowsOf = (width: number) => Math.max(1, Math.ceil(width / this.size.columns));
    const up = widths.slice(0, cursor?.row).reduce((sum, width) => sum + rowsOf(width), 0);
    return up > 0 ? `\r\x1b[${up}A` : "\r";
  }

  /** Also called when the shell continues the process. Other text may be on the terminal then. */
  #open(): void {
    // Turn raw mode off first: if the shell turned it off, Node.js believes that it is still on, and ignores `true`.
    process.stdin.setRawMode(false).setRawMode(true).resume();
    this.#isCooked = true;
    // In the next round of its event loop, Node.js reads the waiting input, which was typed outside raw mode.
    // Only after that, it calls the inner function.
    setImmediate(() => setImmediate(() => (this.#isCooked = false)));
    process.stdout.write((this.#isFull ? FULL : INLINE).enter);
    this.#drawn = { widths: [], cursor: null };
    this.emit("resize");
  }

  #restore(): void {
    process.stdout.write((this.#isFull ? FULL : INLINE).leave);
    process.stdin.setRawMode(false);
  }

  #receive(given: string): void {
    // Outside raw mode, the terminal turned each Enter into a newline. Undo this.
    const typed = this.#isCooked ? given.replaceAll("\n", "\r") : given;
    // Nobody types keys after Enter so fast that they arrive together with it, so a terminal without paste markers
    // has sent a pasted text.
    if (this.#pasted !== null || typed.includes("\x1b") || !/[\r\n]./s.test(typed))
      return void this.#keys.emit("data", typed);
    const text = typed.replaceAll(/\r\n?/g, "\n");
    this.emit("paste", text.replace(/\n$/, ""));
    if (text.endsWith("\n")) this.#keys.emit("data", "\r");
  }

  #press(given: string | undefined, raw: ReadlineKey): void {
    const { ctrl = false, meta = false, name = "" } = raw;
    // node:readline reports the Escape key with the modifier meta.
    const key = `${ctrl ? "ctrl-" : ""}${meta && name !== "escape" ? "meta-" : ""}${name}`;
    if (name === "paste-start") this.#pasted = "";
    else if (name === "paste-end") {
      this.emit("paste", this.#pasted?.replaceAll(/\r\n?/g, "\n") ?? "");
      this.#pasted = null;
    } else if (this.#pasted !== null) this.#pasted += given ?? "";
    else if (key === "ctrl-z") this.#suspend();
    // In raw mode, Ctrl-C arrives as a key and not as a signal.
    else if (key === "ctrl-c" && this.#isFull) process.kill(process.pid, "SIGINT");
    else {
      const text = given === undefined || ctrl || meta || /\p{Cc}/u.test(given) ? "" : given;
      this.emit("key", { text, name: key, raw });
    }
  }

  /** Stops the whole process group, as Ctrl-Z does in a shell. Goes on at once if there is no shell to continue it. */
  #suspend(): void {
    this.#restore();
    process.off("SIGCONT", this.#onContinue);
    process.kill(0, "SIGTSTP");
    process.on("SIGCONT", this.#onContinue);
    this.#open();
  }

  [Symbol.dispose](): void {
    process.stdin.off("data", this.#onData).off("end", this.#onGone);
    process.stdout.off("resize", this.#onResize);
    process.off("SIGHUP", this.#onGone).off("SIGCONT", this.#onContinue).off("exit", this.#onExit);
    this.#restore();
    process.stdin.pause();
  }
}

/**
 * At the exit of the process, Node.js 20 tries to restore the terminal, and aborts with a core dump if the terminal is
 * gone. So end the process by SIGHUP before that.
 */
function endBySignal(): void {
  process.removeAllListeners("SIGHUP"); // with a listener, the signal would not end the process
  process.kill(process.pid, "SIGHUP");
}

/** How often a live view reads and shows the current state, in milliseconds. */
export const REFRESH_MS = 2_000;

/** Shows the result of `look` again and again, until the user presses q, the signal aborts, or `look` rejects. */
export async function showLive(look: () => Promise<LiveView>, everyMs: number, signal: AbortSignal): Promise<void> {
  const stop = new AbortController();
  using screen = new Screen({ full: true });
  let view: LiveView | undefined;
  let offset = 0;
  const draw = () => {
    if (view === undefined || stop.signal.aborted) return;
    const laidOut = layOut(view, offset, screen.size);
    offset = laidOut.offset;
    screen.draw({ rows: laidOut.lines, cursor: null });
  };
  screen.on("resize", draw).on("key", ({ text, name }) => {
    if (text === "q") return stop.abort();
    offset += scrollSteps(name, Math.max(1, Math.floor(screen.size.rows / 2)));
    draw();
  });
  using end = either(stop.signal, signal);
  while (!end.signal.aborted) {
    view = await look();
    draw();
    await delay(everyMs, undefined, { signal: end.signal }).catch(() => "ended");
  }
}

/** How many lines a key scrolls down (negative: up; 0: the key does not scroll). PgDn scrolls `page` lines. */
export function scrollSteps(name: string, page: number): number {
  const steps: Record<string, number> = { down: 1, j: 1, up: -1, k: -1, pagedown: page, space: page, pageup: -page };
  return steps[name] ?? 0;
}

/** The content of a live view: lines that scroll under their heading, with fixed lines above and below them. */
export interface LiveView {
  above: readonly string[];
  heading: string;
  lines: readonly string[];
  below: readonly string[];
}

/** Chooses the lines that fit on the screen, from `offset` on. Returns a smaller offset if `offset` is too large. */
export function layOut(
  { above, heading, lines, below }: LiveView,
  offset: number,
  { rows, columns }: ScreenSize,
): { lines: string[]; offset: number } {
  // Leave room for the heading and for the last line, which shows the keys to press.
  const room = Math.max(1, rows - above.length - below.length - 2);
  const first = Math.max(0, Math.min(offset, lines.length - room));
  const shown = lines.slice(first, first + room);
  const position = `${first + shown.length} of ${lines.length} lines`;
  const keys = lines.length > room ? `q: quit   ↑ ↓ PgUp PgDn: scroll   ${position}` : "q: quit";
  const all = [...above, heading, ...shown, ...below, keys];
  return { lines: all.slice(0, rows).map((line) => clip(line, columns)), offset: first };
}

/** Shortens a line that is too long, and removes its colours. A line that fits keeps them. */
export function clip(line: string, columns: number): string {
  const text = stripVTControlCharacters(line);
  const short = shorten(text, columns, "end");
  return short === text ? line : short;
}
