import { colour } from "./render/colour.js";

const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const FRAME_MS = 80;
const HIDE_CURSOR = "\x1b[?25l";
const SHOW_CURSOR = "\x1b[?25h";
/** Moves the cursor to the beginning of the line, and deletes the line. */
const CLEAR_LINE = "\r\x1b[2K";

/** A line on a terminal that shows a turning symbol and a text until it is stopped. The text must fit in one line. */
export class Spinner {
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
