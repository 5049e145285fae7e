import { onSignals } from "./prompt.js";
import { colour } from "./render/colour.js";
import { type Report, renderProgress } from "./render/progress.js";
import { shorten } from "./render/table.js";

/** How long an operation runs before the line appears, in milliseconds. */
const AFTER_MS = 1_000;
/** How often the line is rendered again to update its times, in milliseconds. */
const EVERY_MS = 500;
/**
 * The columns to leave free for the spinner, the space after it, and the `^C` that a terminal adds. Otherwise, the line
 * might wrap, and removing it would leave a part on the screen.
 */
const RESERVED_WIDTH = 4;

interface ProgressOptions {
  /** Whether the command has `--json`. If so, the line is never shown. */
  json: boolean;
  /** The signal that Ctrl-C aborts. Without it, Ctrl-C ends the process at once. */
  signal?: AbortSignal | undefined;
}

/**
 * A line on standard error that shows the progress of an operation. It appears if the operation takes more than a
 * second and standard error is a terminal. Disposing this object removes the line.
 */
export class ProgressLine implements Disposable {
  readonly #what: string;
  readonly #isInterruptible: boolean;
  readonly #begun = performance.now();
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #cleanups: (() => void)[] = [];
  #reported: { report: Report; at: number } | null = null;
  #spinner: Spinner | undefined;
  #isOver = false;

  constructor(what: string, { json, signal }: ProgressOptions) {
    this.#what = what;
    this.#isInterruptible = signal !== undefined;
    if (json || process.stderr.isTTY !== true) this.#isOver = true;
    else this.#timers.push(setTimeout(() => this.#show(), AFTER_MS).unref());
  }

  /** Receives the reports of the operation. The line shows the last report. */
  readonly report = (report: Report): void => {
    this.#reported = { report, at: performance.now() };
    if (this.#spinner !== undefined) this.#spinner.text = this.#text();
  };

  /**
   * Removes the line. Call this before any other output. `FleetCommand.log` already calls it.
   *
   * @returns whether there was a line
   */
  end(): boolean {
    this.#isOver = true;
    for (const timer of this.#timers) clearTimeout(timer);
    for (const cleanUp of this.#cleanups.splice(0)) cleanUp();
    // Stop a spinner only once. Otherwise, the cursor would move to the start of a line that the command has written.
    const spinner = this.#spinner;
    this.#spinner = undefined;
    spinner?.stop();
    return spinner !== undefined;
  }

  [Symbol.dispose](): void {
    this.end();
  }

  #show(): void {
    if (this.#isOver) return;
    const spinner = new Spinner(process.stderr, this.#text());
    this.#spinner = spinner;
    this.#clearAtEnd();
    const update = () => {
      spinner.text = this.#text();
    };
    this.#timers.push(setInterval(update, EVERY_MS).unref());
  }

  /** Removes the line and shows the cursor again if the process ends before the operation. */
  #clearAtEnd(): void {
    const end = () => void this.end();
    process.once("exit", end);
    this.#cleanups.push(() => process.off("exit", end));
    if (this.#isInterruptible) return;
    const signals = onSignals(["SIGINT", "SIGTERM"], (name) => {
      this.end();
      process.kill(process.pid, name);
    });
    this.#cleanups.push(() => signals[Symbol.dispose]());
  }

  #text(): string {
    const now = performance.now();
    const { report = null, at = now } = this.#reported ?? {};
    const text = renderProgress(this.#what, report, { begunMs: now - this.#begun, reportedMs: now - at });
    const { columns } = process.stderr;
    return shorten(text, (columns > 0 ? columns : 80) - RESERVED_WIDTH, "end");
  }
}

const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const FRAME_MS = 80;
const HIDE_CURSOR = "\x1b[?25l";
const SHOW_CURSOR = "\x1b[?25h";
/** Moves the cursor to the beginning of the line, and deletes the line. */
const CLEAR_LINE = "\r\x1b[2K";

/** A line on a terminal that shows a turning symbol and a text until it is stopped. The text must fit in one line. */
class Spinner {
  readonly #terminal: NodeJS.WritableStream;
  readonly #timer: NodeJS.Timeout;
  #frame = 0;
  #text: string;

  constructor(terminal: NodeJS.WritableStream, text: string) {
    this.#terminal = terminal;
    this.#text = text;
    this.#draw(HIDE_CURSOR);
    this.#timer = setInterval(() => this.#turn(), FRAME_MS).unref();
  }

  set text(text: string) {
    this.#text = text;
    this.#draw();
  }

  /** Removes the line, and shows the cursor again. */
  stop(): void {
    clearInterval(this.#timer);
    this.#terminal.write(`${CLEAR_LINE}${SHOW_CURSOR}`);
  }

  #turn(): void {
    this.#frame = (this.#frame + 1) % FRAMES.length;
    this.#draw();
  }

  #draw(before = ""): void {
    this.#terminal.write(`${before}${CLEAR_LINE}${colour.cyan(FRAMES[this.#frame])} ${this.#text}`);
  }
}
