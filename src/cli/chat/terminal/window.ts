import { printableLines } from "../../../config/values/text.js";
import { colour } from "../../render/colour.js";
import { shorten } from "../../render/table.js";
import { CursorReport } from "./cursor-report.js";
import { type Dialog, DialogQueue } from "./dialogs.js";
import { type Key, Keyboard, type KeyListener } from "./keyboard.js";
import { onOneLine, type Style, wrap } from "./layout.js";
import { OwnTurn } from "./own-turn.js";
import type { PromptInput } from "./prompt-input.js";
import { type LiveRows, Screen } from "./screen.js";

/** Something that changes above the prompt while the chat works. */
export interface LivePart {
  /** Returns the rows that will not change any more, each only once. */
  take(columns: number): string[];
  /** At most `height` rows that may still change. @param isAsked whether the turn waits for an answer of the user */
  live(columns: number, height: number, isAsked: boolean): string[];
}

/** The least time between two drawings while text arrives, in milliseconds. */
const DRAW_MS = 40;
/** The longest time between two drawings while the chat works, so that the user sees progress, in milliseconds. */
const TICK_MS = 120;
const LEAVING = "Ctrl-C again, or Ctrl-D, ends the chat.";

/**
 * The window of a chat: the conversation, which scrolls away, and the prompt below it, where the user can always type.
 */
export class Window implements KeyListener, Disposable {
  readonly #screen = new Screen(process.stdout);
  readonly #input: PromptInput;
  readonly #keyboard: Keyboard;
  readonly #signal: AbortSignal;
  /** Prompts that the user has sent and that wait until the chat is idle. */
  readonly #sent: string[] = [];
  #above: string[] = [];
  #status = "";
  #part: LivePart | null = null;
  #turn: OwnTurn | null = null;
  /** Cancels what the chat works on; null while the chat is idle. */
  #cancel: (() => void) | null = null;
  readonly #dialogs = new DialogQueue();
  #isLeaving = false;
  #hasEnded = false;
  #isGone = false;
  #wake: () => void = () => undefined;
  #drawing: NodeJS.Timeout | null = null;
  #next: NodeJS.Immediate | undefined;
  readonly #onResize = () => this.#resized();
  readonly #cursor = new CursorReport();
  readonly #onAbort = () => this.onEnd();

  constructor(input: PromptInput, signal: AbortSignal) {
    this.#input = input;
    this.#signal = signal;
    signal.addEventListener("abort", this.#onAbort, { once: true });
    process.stdout.on("resize", this.#onResize);
    this.#keyboard = new Keyboard(process.stdin, process.stdout, this);
  }

  get columns(): number {
    return this.#screen.columns;
  }

  /** The present turn of this chat; null between two turns. */
  get turn(): OwnTurn | null {
    return this.#turn;
  }

  /** The row above the prompt. */
  set status(text: string) {
    this.#status = onOneLine(text);
    this.#drawSoon();
  }

  /** Adds rows above the prompt. */
  print(rows: readonly string[]): void {
    this.#above.push(...rows);
    this.#drawSoon();
  }

  /** Adds a line with a command, not broken into rows, so that the user can copy it. */
  sayCommand(text: string): void {
    this.print([colour.dim(printableLines(text))]);
  }

  /** Adds a text above the prompt, in rows that fit. */
  say(text: string, style?: Style): void {
    this.print(wrap([{ text: printableLines(text), ...(style === undefined ? {} : { style }) }], this.columns));
  }

  printPrompt(prompt: string): void {
    const spans = [
      { text: "> ", style: colour.dim },
      { text: printableLines(prompt), style: colour.bold },
    ];
    this.print(wrap(spans, this.columns, "  "));
  }

  /** Waits for the next prompt. Resolves with null when the chat ends. */
  async next(): Promise<string | null> {
    for (;;) {
      const prompt = this.#sent.shift();
      if (prompt !== undefined) {
        this.printPrompt(prompt);
        return prompt;
      }
      if (this.#hasEnded) return null;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Puts `prompt` and all waiting prompts back into the input, where the user can change them and send them again. */
  giveBack(...prompt: [] | [string]): void {
    const texts = [...prompt, ...this.#sent.splice(0), this.#input.text];
    this.#input.text = texts.filter((text) => text !== "").join("\n");
    this.#drawSoon();
  }

  /** Shows `part` above the prompt while `run` runs a turn. Ctrl-C cancels the turn. */
  async during<T>(part: LivePart, run: (turn: OwnTurn) => Promise<T>): Promise<T> {
    const turn = new OwnTurn();
    this.#turn = turn;
    try {
      const cancel = () => turn.cancel(new Cancelled("The turn was cancelled."));
      return await this.#show(part, cancel, async () => await run(turn));
    } finally {
      turn.end();
      this.#turn = null;
      this.#dialogs.dismiss();
    }
  }

  /** Shows `part` above the prompt while `run` does something other than a turn. Ctrl-C aborts the signal of `run`. */
  async working<T>(part: LivePart, run: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const work = new AbortController();
    const cancel = () => work.abort(new Cancelled("The command was cancelled."));
    return await this.#show(part, cancel, async () => await run(work.signal));
  }

  async #show<T>(part: LivePart, cancel: () => void, run: () => Promise<T>): Promise<T> {
    this.#cancel = cancel;
    this.#part = part;
    const ticking = setInterval(() => this.#drawNext(), TICK_MS);
    try {
      return await run();
    } finally {
      clearInterval(ticking);
      this.#cancel = null;
      this.#part = null;
      this.#drawSoon();
    }
  }

  /**
   * Shows a question in place of the prompt, once all earlier questions are answered. Resolves with null if nobody
   * answers it before the turn ends.
   */
  async ask(dialog: Dialog): Promise<string | null> {
    if (this.#turn?.takesAnswers !== true) return null;
    const answer = this.#dialogs.ask(dialog);
    this.#draw();
    await answer;
    this.#drawSoon();
    return await answer;
  }

  /** Call this when the part has changed. Draws soon, but not more often than a person can see changes. */
  changed(): void {
    this.#drawSoon();
  }

  onKey(key: Key): void {
    const isLeaving = this.#isLeaving;
    this.#isLeaving = false;
    const dialog = this.#dialogs.first;
    if (key.name === "ctrl-c" && (dialog !== null || !this.#input.isSearching)) this.#interrupt(isLeaving);
    else if (key.name === "ctrl-z") this.#keyboard.suspend();
    else if (key.name === "continue") this.#screen.restart();
    else if (key.name === "ctrl-l") this.#clear();
    else if (dialog === null && key.name === "ctrl-d" && this.#input.text === "") this.onEnd();
    else if (dialog?.key(key) !== true && this.#input.key(key)) this.#send();
    this.#drawNext();
  }

  onPaste(text: string): void {
    this.#isLeaving = false;
    if (this.#dialogs.first?.paste(text) !== true) this.#input.paste(text);
    this.#drawNext();
  }

  onPosition(column: number): void {
    this.#cursor.arrived(column);
  }

  /** Ends the chat after the running turn and the waiting prompts have their replies. */
  onEnd(): void {
    this.#hasEnded = true;
    this.#wake();
  }

  /** The terminal is gone. Drops prompts and questions that wait, cancels the turn, and ends the chat. */
  onGone(): void {
    if (this.#isGone) return;
    this.#isGone = true;
    this.#sent.length = 0;
    this.#dialogs.dismiss();
    this.#cancel?.();
    this.onEnd();
  }

  #send(): void {
    if (this.#input.text.trim() === "") return;
    this.#sent.push(this.#input.take());
    this.#wake();
  }

  /** Ctrl-C cancels the chat's current work, or clears the prompt. At an empty prompt, the second one ends the chat. */
  #interrupt(isLeaving: boolean): void {
    if (this.#cancel !== null || this.#sent.length > 0) {
      this.giveBack();
      this.#dialogs.dismiss();
      this.#cancel?.();
    } else if (this.#input.text !== "") this.#input.text = "";
    else if (isLeaving) this.onEnd();
    else this.#isLeaving = true;
  }

  #clear(): void {
    this.#dialogs.first?.clear();
    this.#screen.clear();
  }

  #resized(): void {
    this.#cursor.cancel();
    if (this.#screen.askAfterResize()) void this.#drawAtCursor();
    else this.#draw();
  }

  async #drawAtCursor(): Promise<void> {
    this.#keyboard.expectPosition();
    this.#screen.locate(await this.#cursor.next());
    this.#draw();
  }

  #drawSoon(): void {
    this.#drawing ??= setTimeout(() => this.#drawNext(), DRAW_MS);
  }

  /** Draws after Node.js has handled pending signals, because a signal may report a new size of the terminal. */
  #drawNext(): void {
    this.#next ??= setImmediate(() => this.#draw());
  }

  #draw(): void {
    if (this.#drawing !== null) clearTimeout(this.#drawing);
    this.#drawing = null;
    clearImmediate(this.#next);
    this.#next = undefined;
    if (this.#cursor.isAwaited) return;
    const { columns } = this.#screen;
    const height = this.#screen.rows - 1;
    const question = this.#dialogs.first?.take(columns, height - 1) ?? [];
    const above = [...this.#above.splice(0), ...(this.#part?.take(columns) ?? []), ...question];
    this.#screen.draw(above, this.#live(columns, height));
  }

  #live(columns: number, height: number): LiveRows {
    const waiting = this.#sent.map((text) =>
      colour.dim(shorten(`> ${onOneLine(text.slice(0, 1_000))}`, columns, "end")),
    );
    const half = Math.max(1, Math.floor(height / 2));
    const dialog = this.#dialogs.first;
    const { rows, cursor } = dialog?.view(columns, height - 1) ?? this.#input.view(columns, half);
    const status = this.#status === "" || dialog !== null ? [] : [colour.dim(shorten(this.#status, columns, "end"))];
    const hint = this.#isLeaving ? [colour.dim(shorten(LEAVING, columns, "end"))] : [];
    const room = Math.max(1, height - rows.length - waiting.length - status.length - hint.length);
    const part = this.#part?.live(columns, room, dialog !== null) ?? [];
    const before = [...part, ...waiting, ...status];
    return { rows: [...before, ...rows, ...hint], cursor: { ...cursor, row: before.length + cursor.row } };
  }

  /** Draws the remaining rows, and leaves the cursor below them. */
  [Symbol.dispose](): void {
    this.#signal.removeEventListener("abort", this.#onAbort);
    process.stdout.off("resize", this.#onResize);
    if (this.#drawing !== null) clearTimeout(this.#drawing);
    clearImmediate(this.#next);
    this.#cursor[Symbol.dispose]();
    this.#screen.draw(this.#above, { rows: [""], cursor: { row: 0, column: 0 } });
    this.#keyboard[Symbol.dispose]();
  }
}

/** Work was cancelled, because the user pressed Ctrl-C or the terminal is gone. */
export class Cancelled extends Error {}
