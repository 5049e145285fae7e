import { onSignals } from "./prompt.js";
import { colour } from "./render/colour.js";
import { FRAMES, type Report, renderProgress } from "./render/progress.js";
import { shorten } from "./render/table.js";

/** How long an operation runs before the line appears, and how often the line is drawn again, in milliseconds. */
const [AFTER_MS, EVERY_MS] = [1_000, 80];
/**
 * The columns to leave free for the spinner, the space after it, and the `^C` that a terminal adds. Otherwise, the line
 * might wrap, and removing it would leave a part on the screen.
 */
const RESERVED_WIDTH = 4;
const [HIDE_CURSOR, SHOW_CURSOR] = ["\x1b[?25l", "\x1b[?25h"];
/** Moves the cursor to the beginning of the line, and deletes the line. */
const CLEAR_LINE = "\r\x1b[2K";

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
  readonly #onExit = () => void this.end();
  #reported: { report: Report; at: number } | null = null;
  #timer: NodeJS.Timeout | undefined;
  #signals: Disposable | undefined;
  #isShown = false;
  #frame = 0;

  constructor(what: string, { json, signal }: ProgressOptions) {
    this.#what = what;
    this.#isInterruptible = signal !== undefined;
    if (!json && process.stderr.isTTY === true) this.#timer = setTimeout(() => this.#show(), AFTER_MS).unref();
  }

  /** Receives the reports of the operation. The line shows the last report. */
  readonly report = (report: Report): void => {
    this.#reported = { report, at: performance.now() };
    if (this.#isShown) this.#draw();
  };

  /**
   * Removes the line. Call this before any other output. `FleetCommand.log` already calls it.
   *
   * @returns whether there was a line
   */
  end(): boolean {
    clearTimeout(this.#timer);
    // Clear the line only once. Later, the cursor may be on a line that the command has written.
    if (!this.#isShown) return false;
    this.#isShown = false;
    process.off("exit", this.#onExit);
    this.#signals?.[Symbol.dispose]();
    process.stderr.write(`${CLEAR_LINE}${SHOW_CURSOR}`);
    return true;
  }

  [Symbol.dispose](): void {
    this.end();
  }

  #show(): void {
    this.#isShown = true;
    // Remove the line and show the cursor again if the process ends before the operation.
    process.once("exit", this.#onExit);
    if (!this.#isInterruptible) {
      this.#signals = onSignals(["SIGINT", "SIGTERM"], (name) => {
        this.end();
        process.kill(process.pid, name);
      });
    }
    process.stderr.write(HIDE_CURSOR);
    this.#draw();
    this.#timer = setInterval(() => this.#draw(), EVERY_MS).unref();
  }

  #draw(): void {
    const now = performance.now();
    const { report = null, at = now } = this.#reported ?? {};
    const text = renderProgress(this.#what, report, { begunMs: now - this.#begun, reportedMs: now - at });
    const { columns } = process.stderr;
    const line = shorten(text, (columns > 0 ? columns : 80) - RESERVED_WIDTH, "end");
    process.stderr.write(`${CLEAR_LINE}${colour.cyan(FRAMES[this.#frame++ % FRAMES.length])} ${line}`);
  }
}
