import { createInterface, emitKeypressEvents, type Key } from "node:readline";
import { PassThrough, Readable, Writable } from "node:stream";
import { printableLines } from "../../../base/values/text.js";
import { wrap as hardWrap } from "../../render/table.js";
import { widthOf } from "../layout.js";
import type { LiveRows } from "../window.js";

export interface KeyListener {
  /** @param text the text of the key; empty for a key without text, such as an arrow */
  onKey(text: string, key: Key): void;
  onPaste(text: string): void;
  /** The terminal was stopped and continued, so that other text may be on it. */
  onContinue(): void;
  /** Called when the terminal is gone, perhaps more than once. */
  onGone(): void;
}

const PASTE_ON = "\x1b[?2004h";
const PASTE_OFF = "\x1b[?2004l";

/** Reads keys and pasted text from the terminal until it is disposed. */
export class Keyboard implements Disposable {
  readonly #listener: KeyListener;
  /** Whether the input may have been typed outside raw mode: before the chat began, or while the chat was stopped. */
  #isCooked = true;
  /** The text that is being pasted; null outside of a paste. */
  #pasted: string | null = null;
  /** node:readline reads the keys from this stream and decodes them. */
  readonly #keys = new Readable({ read: () => undefined });
  readonly #onData = (chunk: string) => this.#receive(chunk);
  readonly #onGone = () => {
    this.#listener.onGone();
    process.off("exit", endBySignal).once("exit", endBySignal);
  };
  readonly #onContinue = () => this.#open();
  readonly #onExit = () => this.#restore();

  constructor(listener: KeyListener) {
    const { stdin, stdout } = process;
    this.#listener = listener;
    emitKeypressEvents(this.#keys);
    this.#keys.on("keypress", (text: string | undefined, key: Key) => this.#press(text, key));
    stdin.setEncoding("utf8");
    stdin.on("data", this.#onData);
    stdin.once("end", this.#onGone);
    // Never remove this listener, because turning raw mode off also causes an error if the terminal is gone.
    stdin.on("error", this.#onGone);
    process.on("SIGHUP", this.#onGone);
    // Replace the listeners of oclif and main.ts, which would throw the error of a vanished terminal and end the chat.
    stdout.removeAllListeners("error").on("error", this.#onGone);
    process.on("SIGCONT", this.#onContinue);
    process.once("exit", this.#onExit);
    this.#open();
  }

  /**
   * Stops the whole process group, as Ctrl-Z does in a shell. Returns when the shell continues the group, or at once if
   * there is no shell that could do so.
   */
  suspend(): void {
    this.#restore();
    process.off("SIGCONT", this.#onContinue);
    process.kill(0, "SIGTSTP");
    process.on("SIGCONT", this.#onContinue);
    this.#open();
  }

  #open(): void {
    // Turn raw mode off first: if the shell turned it off, Node.js believes that it is still on, and ignores `true`.
    process.stdin.setRawMode(false);
    process.stdin.setRawMode(true);
    process.stdin.resume();
    this.#isCooked = true;
    // In the next round of its event loop, Node.js reads the waiting input, which was typed outside raw mode.
    // Only after that, it calls the inner function.
    setImmediate(() => setImmediate(() => (this.#isCooked = false)));
    process.stdout.write(PASTE_ON);
    this.#listener.onContinue();
  }

  #restore(): void {
    process.stdout.write(`${PASTE_OFF}\x1b[?25h`);
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
    this.#listener.onPaste(text.replace(/\n$/, ""));
    if (text.endsWith("\n")) this.#keys.emit("data", "\r");
  }

  #press(text: string | undefined, key: Key): void {
    if (key.name === "paste-start") this.#pasted = "";
    else if (key.name === "paste-end") {
      this.#listener.onPaste(this.#pasted?.replaceAll(/\r\n?/g, "\n") ?? "");
      this.#pasted = null;
    } else if (this.#pasted !== null) this.#pasted += text ?? "";
    else this.#listener.onKey(text === undefined || key.ctrl || key.meta || /\p{Cc}/u.test(text) ? "" : text, key);
  }

  [Symbol.dispose](): void {
    process.stdin.off("data", this.#onData);
    process.stdin.off("end", this.#onGone);
    process.off("SIGHUP", this.#onGone);
    process.off("SIGCONT", this.#onContinue);
    process.off("exit", this.#onExit);
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

/** A text that a person edits with the keys of node:readline. The caller draws it. */
export class Editor {
  readonly #readline = createInterface({
    input: new PassThrough(),
    output: new Writable({ write: (_chunk, _encoding, done) => done() }),
    terminal: true,
    historySize: 0,
  });

  get text(): string {
    return this.#readline.line;
  }

  set text(text: string) {
    Object.assign(this.#readline, { line: text, cursor: text.length });
  }

  get isAtEnd(): boolean {
    return this.#readline.cursor === this.text.length;
  }

  insert(text: string): void {
    const { line, cursor } = this.#readline;
    const before = line.slice(0, cursor) + text;
    Object.assign(this.#readline, { line: before + line.slice(cursor), cursor: before.length });
  }

  press(text: string, key: Key): void {
    if (text !== "") this.insert(text);
    else if (key.ctrl !== true || key.name !== "d" || this.text !== "") this.#readline.write(null, key);
  }

  view(prompt: string, columns: number, height: number): LiveRows {
    const rowsOf = (text: string) =>
      text.split("\n").flatMap((line, index) => {
        const head = index === 0 ? prompt : " ".repeat(prompt.length);
        const shown = printableLines(line.replaceAll("\t", "    "));
        // The last column stays free for the cursor.
        return hardWrap(shown, Math.max(2, columns - prompt.length - 1)).map(
          (row, at) => (at === 0 ? head : " ".repeat(prompt.length)) + row,
        );
      });
    const rows = rowsOf(this.text);
    const before = rowsOf(this.text.slice(0, this.#readline.cursor));
    const row = before.length - 1;
    const first = Math.max(0, Math.min(row, rows.length - height));
    return {
      rows: rows.slice(first, first + height),
      cursor: { row: row - first, column: widthOf(before.at(-1) ?? "") },
    };
  }
}
