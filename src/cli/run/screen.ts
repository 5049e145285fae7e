import { EventEmitter } from "node:events";
import { emitKeypressEvents } from "node:readline";

/** Switches to the alternate screen, hides the cursor and turns line wrapping off. */
const ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME = "\x1b[H";
const CLEAR_LINE = "\x1b[K";
const CLEAR_BELOW = "\x1b[J";
const NEXT_LINE = "\x1b[E";

/** A key as `node:readline` reports it. */
export interface Key {
  /** The text that the key types; undefined for keys such as the arrows. */
  text: string | undefined;
  name: string | undefined;
}

export interface ScreenSize {
  rows: number;
  columns: number;
}

/** Takes over the whole terminal, and emits `key` and `resize`. Disposing it restores the terminal. */
export class FullScreen extends EventEmitter<{ key: [Key]; resize: [] }> implements Disposable {
  readonly #onKeypress = (text: string | undefined, { name, ctrl }: { name?: string; ctrl?: boolean }) => {
    // In raw mode, Ctrl-C arrives as a key and not as a signal.
    if (ctrl === true && name === "c") process.kill(process.pid, "SIGINT");
    else this.emit("key", { text, name });
  };
  readonly #onResize = () => void this.emit("resize");
  readonly #leave = () => void process.stdout.write(LEAVE);

  constructor() {
    super();
    emitKeypressEvents(process.stdin);
    process.stdin.on("keypress", this.#onKeypress);
    process.stdout.on("resize", this.#onResize);
    process.stdin.setRawMode(true);
    process.stdin.resume();
    // A second Ctrl-C ends the process without disposing this object, so also restore the terminal at the exit.
    process.once("exit", this.#leave);
    process.stdout.write(ENTER);
  }

  /** The size of the terminal. Some terminals report 0 rows or columns, for which this returns 24 and 80. */
  get size(): ScreenSize {
    const { rows, columns } = process.stdout;
    return { rows: rows > 0 ? rows : 24, columns: columns > 0 ? columns : 80 };
  }

  draw(lines: readonly string[]): void {
    // Clear each line before writing its text, not after. After a text as wide as the terminal, the cursor is on the
    // last character, and clearing would remove that character.
    const below = lines.length < this.size.rows ? `${NEXT_LINE}${CLEAR_BELOW}` : "";
    process.stdout.write(`${HOME}${lines.map((line) => `${CLEAR_LINE}${line}`).join("\r\n")}${below}`);
  }

  [Symbol.dispose](): void {
    process.off("exit", this.#leave);
    this.#leave();
    process.stdin.off("keypress", this.#onKeypress);
    process.stdout.off("resize", this.#onResize);
    process.stdin.setRawMode(false);
    process.stdin.pause();
  }
}
