import { emitKeypressEvents } from "node:readline";
import { Readable } from "node:stream";
import { PastedText } from "./pasted.js";
import { Positions } from "./positions.js";

export interface Key {
  /** The text of the key; empty for a key without text, such as an arrow. */
  text: string;
  /** The name that node:readline gives the key, with its modifiers: `ctrl-c`, `meta-return`, `up`. */
  name: string;
}

export interface KeyListener {
  onKey(key: Key): void;
  onPaste(text: string): void;
  /** The terminal has reported the column of the cursor, from 0. See {@link Keyboard.expectPosition}. */
  onPosition(column: number): void;
  /** Called when the terminal is gone, perhaps more than once. */
  onGone(): void;
}

/** Shift-Enter and Alt-Enter as terminals with kitty's keyboard protocol report them. */
const MODIFIED_ENTER = new Set(["\x1b[13;2u", "\x1b[13;3u", "\x1b[13;4u"]);
const ON = "\x1b[?2004h";
const OFF = "\x1b[?2004l";

/** Reads keys and pasted text from a terminal until it is disposed. */
export class Keyboard implements Disposable {
  readonly #input: NodeJS.ReadStream;
  readonly #output: NodeJS.WriteStream;
  readonly #listener: KeyListener;
  readonly #pasted = new PastedText();
  readonly #positions = new Positions();
  /** Whether the input may have been typed outside raw mode: before the chat began, or while the chat was stopped. */
  #isCooked = true;
  /** node:readline reads the keys from this stream and decodes them. */
  readonly #keys = new Readable({ read: () => undefined });
  readonly #onData = (chunk: string) => this.#receive(chunk);
  readonly #onGone = () => {
    this.#listener.onGone();
    process.off("exit", endBySignal).once("exit", endBySignal);
  };
  readonly #onContinue = () => this.#open();
  readonly #onExit = () => this.#restore();

  constructor(input: NodeJS.ReadStream, output: NodeJS.WriteStream, listener: KeyListener) {
    this.#input = input;
    this.#output = output;
    this.#listener = listener;
    emitKeypressEvents(this.#keys);
    this.#keys.on("keypress", (text: string | undefined, key: NodeKey) => listener.onKey(named(text, key)));
    input.setEncoding("utf8");
    input.on("data", this.#onData);
    input.once("end", this.#onGone);
    // Never remove this listener, because turning raw mode off also causes an error if the terminal is gone.
    input.on("error", this.#onGone);
    process.on("SIGHUP", this.#onGone);
    // Replace the listeners of oclif and main.ts, which would throw the error of a vanished terminal and end the chat.
    output.removeAllListeners("error").on("error", this.#onGone);
    process.on("SIGCONT", this.#onContinue);
    process.once("exit", this.#onExit);
    this.#open();
  }

  /** Call this after asking the terminal for the cursor's position. Otherwise, its report would be read as keys. */
  expectPosition(): void {
    this.#positions.expect();
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
    this.#input.setRawMode(false);
    this.#input.setRawMode(true);
    this.#input.resume();
    this.#isCooked = true;
    // In the next round of its event loop, Node.js reads the waiting input, which was typed outside raw mode.
    // Only after that, it calls the inner function.
    setImmediate(() => setImmediate(() => (this.#isCooked = false)));
    this.#output.write(ON);
    this.#listener.onKey({ text: "", name: "continue" });
  }

  #restore(): void {
    this.#output.write(`${OFF}\x1b[?25h`);
    this.#input.setRawMode(false);
  }

  #receive(given: string): void {
    // Outside raw mode, the terminal turned each Enter into a newline. Undo this.
    const typed = this.#isCooked ? given.replaceAll("\n", "\r") : given;
    const { keys, column } = this.#positions.read(typed);
    for (const { isPasted, text } of this.#pasted.read(keys)) {
      if (isPasted) this.#listener.onPaste(text);
      else this.#keys.emit("data", text);
    }
    if (column !== undefined) this.#listener.onPosition(column);
  }

  [Symbol.dispose](): void {
    this.#input.off("data", this.#onData);
    this.#input.off("end", this.#onGone);
    process.off("SIGHUP", this.#onGone);
    process.off("SIGCONT", this.#onContinue);
    process.off("exit", this.#onExit);
    this.#restore();
    this.#input.pause();
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

interface NodeKey {
  name?: string;
  sequence?: string;
  ctrl?: boolean;
  meta?: boolean;
  shift?: boolean;
}

function named(text: string | undefined, { name, sequence = "", ctrl, meta }: NodeKey): Key {
  if (MODIFIED_ENTER.has(sequence)) return { text: "", name: "meta-return" };
  const isText = text !== undefined && ctrl !== true && meta !== true && !/\p{Cc}/u.test(text);
  const modifier = ctrl === true ? "ctrl-" : meta === true ? "meta-" : "";
  return { text: isText ? text : "", name: `${modifier}${name ?? ""}` };
}
