import type { Key } from "node:readline";
import { stripVTControlCharacters } from "node:util";
import { printableLines } from "../../base/values/text.js";
import { colour } from "../render/colour.js";
import { shorten } from "../render/table.js";
import { onOneLine, widthOf, wrap } from "./layout.js";
import { Editor, Keyboard, type KeyListener } from "./terminal/input.js";

/** Terminals that support these two sequences show everything between them at once. Other terminals ignore them. */
const BEGIN = "\x1b[?2026h\x1b[?25l";
const END = "\x1b[?25h\x1b[?2026l";
const CLEAR_BELOW = "\x1b[J";

interface Cursor {
  row: number;
  column: number;
}

/** The rows that may still change, and the cursor in them. No row is wider than the terminal. */
export interface LiveRows {
  rows: readonly string[];
  cursor: Cursor;
}

const NOTHING: { widths: number[]; cursor: Cursor } = { widths: [], cursor: { row: 0, column: 0 } };

/**
 * Draws a chat at the end of the text on a terminal. Finished rows scroll away and are never drawn again. The live rows
 * below them are drawn again with each change.
 */
class Screen {
  /** The widths of the live rows, and the position of the cursor in them, as they were last drawn. */
  #drawn = NOTHING;

  /** The width of the terminal. Some terminals report 0 columns or rows. */
  get columns(): number {
    return process.stdout.columns > 0 ? process.stdout.columns : 80;
  }

  get rows(): number {
    return process.stdout.rows > 0 ? process.stdout.rows : 24;
  }

  /** Adds rows above the live rows, and draws the live rows again. */
  draw(above: readonly string[], live: LiveRows): void {
    const { rows, cursor } = fitted(live, this.rows);
    const up = rows.length - 1 - cursor.row;
    process.stdout.write(
      [
        BEGIN,
        this.#toTop(),
        CLEAR_BELOW,
        ...above.map((row) => `${row}\r\n`),
        rows.join("\r\n"),
        up > 0 ? `\x1b[${up}A` : "",
        "\r",
        cursor.column > 0 ? `\x1b[${cursor.column}C` : "",
        END,
      ].join(""),
    );
    this.#drawn = { widths: rows.map((row) => widthOf(stripVTControlCharacters(row))), cursor };
  }

  /** Makes the next `draw` begin at the cursor, because another program may have used the terminal. */
  restart(): void {
    this.#drawn = NOTHING;
  }

  /** The sequence that moves the cursor to the first live row. On a narrower terminal, a row may take several rows. */
  #toTop(): string {
    const { widths, cursor } = this.#drawn;
    const rowsOf = (width: number) => Math.max(1, Math.ceil(width / this.columns));
    const up = widths.slice(0, cursor.row).reduce((sum, width) => sum + rowsOf(width), 0);
    return up > 0 ? `\r\x1b[${up}A` : "\r";
  }
}

/** If not all live rows fit on the terminal, keeps only the last ones, but always the row with the cursor. */
function fitted({ rows, cursor }: LiveRows, height: number): LiveRows {
  const most = Math.max(1, height - 1);
  if (rows.length <= most) return { rows, cursor };
  const first = Math.min(cursor.row, rows.length - most);
  return { rows: rows.slice(first, first + most), cursor: { ...cursor, row: cursor.row - first } };
}

/** Something that changes above the prompt while the chat works. */
export interface LivePart {
  /** Returns the rows that are final, each of them once. */
  take(columns: number): string[];
  /** At most `height` rows that may still change. @param isAsked whether the turn waits for an answer of the user */
  live(columns: number, height: number, isAsked: boolean): string[];
}

/** The least time between two drawings while text arrives, in milliseconds. */
const DRAW_MS = 40;
/** The longest time between two drawings while the chat works, so that the user sees progress, in milliseconds. */
const TICK_MS = 120;
/** How long the user must have paused before a key answers a question, in milliseconds. */
const QUIET_MS = 500;
const NOT_QUIET = "Keys go to the prompt until you stop typing.";
const CUT = "… all of it is above";
const LEAVING = "Ctrl-C again, or Ctrl-D, ends the chat.";

/** A question that takes the place of the prompt until it is answered. */
export interface Question {
  /** The lines, printable and styled. */
  lines: readonly string[];
  /** The keys that answer the question; null if the user answers with a text. */
  choices: readonly { key: string; label: string }[] | null;
}

interface Asked extends Question {
  answer: (value: string | null) => void;
  /** The text of the answer; null until the user begins to type it. */
  editor: Editor | null;
  /** The time of the last key that was not for the question, or the time when the question appeared. */
  quietSince: number;
  /** Whether the question did not fit, and was therefore printed above in full. */
  isPrinted: boolean;
}

/**
 * The window of a chat: the conversation, which scrolls away, and the prompt below it, where the user can always type.
 */
export class Window implements KeyListener, Disposable {
  readonly #screen = new Screen();
  readonly #input = new Editor();
  /** The prompts that Up and Down show, the oldest first, and the place in them. */
  readonly #history: string[];
  #at: number;
  /** The text of the new prompt while the editor shows an earlier prompt. */
  #draft = "";
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
  /** The questions that wait for an answer. The oldest one is on the screen. */
  readonly #asked: Asked[] = [];
  #isLeaving = false;
  #hasEnded = false;
  #isGone = false;
  #wake: () => void = () => undefined;
  #drawing: NodeJS.Timeout | null = null;
  #next: NodeJS.Immediate | undefined;
  readonly #onResize = () => this.#draw();
  readonly #onAbort = () => this.onEnd();

  /** @param history the prompts of earlier chats, the oldest first */
  constructor(history: readonly string[], signal: AbortSignal) {
    this.#history = [...history];
    this.#at = history.length;
    this.#signal = signal;
    signal.addEventListener("abort", this.#onAbort, { once: true });
    process.stdout.on("resize", this.#onResize);
    this.#keyboard = new Keyboard(this);
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
  say(text: string, style = (plain: string) => plain): void {
    this.print(wrap(style(printableLines(text)), this.columns));
  }

  printPrompt(prompt: string): void {
    this.print(wrap(colour.bold(printableLines(prompt)), this.columns, "  ", colour.dim("> ")));
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
      this.#dismiss();
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
  async ask(question: Question): Promise<string | null> {
    if (this.#turn?.takesAnswers !== true) return null;
    const answer = await new Promise<string | null>((resolve) => {
      this.#asked.push({ ...question, answer: resolve, editor: null, quietSince: performance.now(), isPrinted: false });
      this.#draw();
    });
    this.#asked.shift();
    for (const next of this.#asked.slice(0, 1)) next.quietSince = performance.now();
    this.#drawSoon();
    return answer;
  }

  /** Ends all questions without an answer. */
  #dismiss(): void {
    for (const { answer } of this.#asked) answer(null);
  }

  /** Call this when the part has changed. Draws soon, but not more often than a person can see changes. */
  changed(): void {
    this.#drawSoon();
  }

  onKey(text: string, key: Key): void {
    const isLeaving = this.#isLeaving;
    this.#isLeaving = false;
    const name = `${key.ctrl === true ? "ctrl-" : ""}${key.meta === true ? "meta-" : ""}${key.name ?? ""}`;
    const [question] = this.#asked;
    if (name === "ctrl-c") this.#interrupt(isLeaving);
    else if (name === "ctrl-z") this.#keyboard.suspend();
    else if (question === undefined && name === "ctrl-d" && this.#input.text === "") this.onEnd();
    else if (question === undefined || !this.#answers(question, text, key)) this.#edit(name, text, key);
    this.#drawNext();
  }

  onPaste(text: string): void {
    this.#isLeaving = false;
    const [question] = this.#asked;
    const editor = question === undefined ? this.#input : this.#editorOf(question);
    if (editor !== null) editor.insert(text);
    else this.#input.insert(text);
    this.#drawNext();
  }

  onContinue(): void {
    this.#screen.restart();
    this.#drawNext();
  }

  /** The editor for the answer to a question; null if the key or text belongs to the prompt instead. */
  #editorOf(question: Asked): Editor | null {
    const isQuiet = performance.now() - question.quietSince >= QUIET_MS;
    if (question.choices === null && isQuiet) question.editor ??= new Editor();
    if (question.editor === null) question.quietSince = performance.now();
    return question.editor;
  }

  /** Handles a key for a question. Returns false if the key belongs to the prompt instead. */
  #answers(question: Asked, text: string, key: Key): boolean {
    const isQuiet = performance.now() - question.quietSince >= QUIET_MS;
    const chosen = isQuiet ? question.choices?.find((choice) => choice.key === text.toLowerCase()) : undefined;
    if (chosen !== undefined) {
      question.answer(chosen.key);
      return true;
    }
    const editor = this.#editorOf(question);
    if (editor === null) return false;
    if (key.name === "return" || key.name === "enter") question.answer(editor.text);
    else if (key.ctrl === true && key.name === "d" && editor.text === "") question.answer(null);
    else editor.press(text, key);
    return true;
  }

  #edit(name: string, text: string, key: Key): void {
    if (name === "return" || name === "enter") this.#send();
    else if (name === "meta-return" || name === "meta-enter") this.#input.insert("\n");
    else if (name === "up" || name === "ctrl-p") this.#recall(this.#at - 1);
    else if (name === "down" || name === "ctrl-n") this.#recall(this.#at + 1);
    else this.#input.press(text, key);
  }

  /** Shows an earlier prompt. */
  #recall(at: number): void {
    if (at < 0 || at > this.#history.length) return;
    if (this.#at === this.#history.length) this.#draft = this.#input.text;
    this.#at = at;
    this.#input.text = this.#history[at] ?? this.#draft;
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
    this.#dismiss();
    this.#cancel?.();
    this.onEnd();
  }

  /** Sends the prompt, or replaces a backslash at its end with a line break. */
  #send(): void {
    const { text } = this.#input;
    if (text.trim() === "") return;
    if (this.#input.isAtEnd && text.endsWith("\\")) {
      this.#input.text = `${text.slice(0, -1)}\n`;
      return;
    }
    if (text !== this.#history.at(-1)) this.#history.push(text);
    this.#at = this.#history.length;
    this.#draft = "";
    this.#input.text = "";
    this.#sent.push(text);
    this.#wake();
  }

  /** Ctrl-C cancels the chat's current work, or clears the prompt. At an empty prompt, the second one ends the chat. */
  #interrupt(isLeaving: boolean): void {
    if (this.#cancel !== null || this.#sent.length > 0) {
      this.giveBack();
      this.#dismiss();
      this.#cancel?.();
    } else if (this.#input.text !== "") this.#input.text = "";
    else if (isLeaving) this.onEnd();
    else this.#isLeaving = true;
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
    const { columns } = this.#screen;
    const height = this.#screen.rows - 1;
    const above = [...this.#above.splice(0), ...(this.#part?.take(columns) ?? [])];
    const [question] = this.#asked;
    const asking = question === undefined ? null : asked(question, columns, height - 1);
    if (question !== undefined && asking !== null && asking.all.length > 0 && !question.isPrinted) {
      question.isPrinted = true;
      above.push(...asking.all);
    }
    this.#screen.draw(above, this.#live(columns, height, asking));
  }

  #live(columns: number, height: number, asking: LiveRows | null): LiveRows {
    const waiting = this.#sent.map((text) =>
      colour.dim(shorten(`> ${onOneLine(text.slice(0, 1_000))}`, columns, "end")),
    );
    const half = Math.max(1, Math.floor(height / 2));
    const { rows, cursor } = asking ?? this.#input.view("> ", columns, half);
    const status = this.#status === "" || asking !== null ? [] : [colour.dim(shorten(this.#status, columns, "end"))];
    const hint = this.#isLeaving ? [colour.dim(shorten(LEAVING, columns, "end"))] : [];
    const room = Math.max(1, height - rows.length - waiting.length - status.length - hint.length);
    const part = this.#part?.live(columns, room, asking !== null) ?? [];
    const before = [...part, ...waiting, ...status];
    return { rows: [...before, ...rows, ...hint], cursor: { ...cursor, row: before.length + cursor.row } };
  }

  /** Draws the remaining rows, and leaves the cursor below them. */
  [Symbol.dispose](): void {
    this.#signal.removeEventListener("abort", this.#onAbort);
    process.stdout.off("resize", this.#onResize);
    if (this.#drawing !== null) clearTimeout(this.#drawing);
    clearImmediate(this.#next);
    this.#screen.draw(this.#above, { rows: [""], cursor: { row: 0, column: 0 } });
    this.#keyboard[Symbol.dispose]();
  }
}

/**
 * The rows of a question. `all` has the complete rows if the question does not fit; otherwise it is empty.
 */
function asked(question: Asked, columns: number, height: number): LiveRows & { all: string[] } {
  const lines = question.lines.flatMap((line) => wrap(line, columns));
  const choices = (question.choices ?? []).flatMap(({ key, label }) =>
    wrap(label, columns, "   ", `${colour.bold(key)}  `),
  );
  const isQuiet = question.editor !== null || performance.now() - question.quietSince >= QUIET_MS;
  const hint = isQuiet ? [] : wrap(colour.dim(NOT_QUIET), columns);
  const answer = isQuiet && question.choices === null ? (question.editor ?? new Editor()).view("? ", columns, 3) : null;
  const room = Math.max(1, height - choices.length - wrap(NOT_QUIET, columns).length);
  const isCut = lines.length > room;
  const shown = isCut ? [...lines.slice(0, room - 1), colour.dim(CUT)] : lines;
  const above = [...shown, ...choices, ...hint];
  const all = isCut ? ["", ...lines] : [];
  if (answer === null) return { all, rows: above, cursor: { row: above.length - 1, column: 0 } };
  return { all, rows: [...above, ...answer.rows], cursor: { ...answer.cursor, row: above.length + answer.cursor.row } };
}

/** Work was cancelled, because the user pressed Ctrl-C or the terminal is gone. */
export class Cancelled extends Error {}

/**
 * A turn of this chat. The server sends the agent's questions to all clients of the session, and each client answers
 * only those of its own turns. While this chat's prompt waits, the turn of another client may still run.
 */
export class OwnTurn {
  readonly #cancelled = new AbortController();
  /** How many tool calls with each id have ended. A model may give later calls the same id. */
  readonly #endedCalls = new Map<string, number>();
  #state: "waits" | "runs" | "is over" = "waits";
  #decide: (isOwn: boolean) => void = () => undefined;
  /** Whether questions that arrived before `begin` or `find` belong to this turn. Settles when it begins or ends. */
  readonly #early = new Promise<boolean>((resolve) => {
    this.#decide = resolve;
  });

  /** Aborts when the user cancels the turn. */
  get signal(): AbortSignal {
    return this.#cancelled.signal;
  }

  /** Whether the user can still answer questions of the turn. */
  get takesAnswers(): boolean {
    return this.#state === "runs" && !this.signal.aborted;
  }

  cancel(reason: Error): void {
    this.#cancelled.abort(reason);
  }

  /** Call this when the server has begun the turn. Questions that arrived earlier belong to another turn. */
  begin(): void {
    this.#run(false);
  }

  /** Call this if the turn began while the connection was lost. Questions that arrived earlier belong to this turn. */
  find(): void {
    this.#run(true);
  }

  end(): void {
    this.#state = "is over";
    this.#decide(false);
  }

  endCall(id: string): void {
    this.#endedCalls.set(id, this.endedCalls(id) + 1);
  }

  /** How many tool calls with this id have ended in this turn. */
  endedCalls(id: string): number {
    return this.#endedCalls.get(id) ?? 0;
  }

  /** Whether a question that arrives now belongs to this turn. Before the turn, waits until the turn begins or ends. */
  async asks(): Promise<boolean> {
    return this.#state === "runs" || (await this.#early);
  }

  #run(hasEarly: boolean): void {
    if (this.#state !== "waits") return;
    this.#state = "runs";
    this.#decide(hasEarly);
  }
}
