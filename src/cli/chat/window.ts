import { createInterface } from "node:readline";
import { PassThrough, Writable } from "node:stream";
import wrapAnsi from "wrap-ansi";
import { printableLines } from "../../base/values/text.js";
import { colour } from "../render/colour.js";
import { onOneLine, widthOf, wrap } from "../render/layout.js";
import { FRAMES, type Report, renderProgress } from "../render/progress.js";
import { shorten } from "../render/table.js";
import { type Key, type LiveRows, Screen } from "../run/screen.js";

/** The time between a change and its drawing, and between two drawings while the chat works, in milliseconds. */
const [DRAW_MS, TICK_MS] = [20, 120];
/** How long the user must have paused before a key answers a question, in milliseconds. */
const QUIET_MS = 500;
const NOT_QUIET = "Keys go to the prompt until you stop typing.";
const LEAVING = "Ctrl-C again, or Ctrl-D, ends the chat.";

/** Work was cancelled, because the user pressed Ctrl-C or the terminal is gone. */
export class Cancelled extends Error {}

/** Something that the chat does, with a row that shows for how long. */
export class Work {
  readonly #begunAt = performance.now();
  #reported: { report: Report; at: number } | null = null;
  protected what: string;
  readonly #afterMs: number;

  /** @param afterMs how long the work runs before the row appears */
  constructor(what: string, afterMs = 1_000) {
    this.what = what;
    this.#afterMs = afterMs;
  }

  /** The reason for a wait, which the row shows; null if nothing waits. */
  set reason(report: Report | null) {
    this.#reported = report === null ? null : { report, at: performance.now() };
  }

  /** Returns the rows that are final, each of them once. */
  take(_columns: number): string[] {
    return [];
  }

  /** The rows that may still change. */
  live(columns: number): string[] {
    const row = this.row(columns);
    return row.length === 0 ? [] : ["", ...row];
  }

  protected row(columns: number): string[] {
    const now = performance.now();
    const { report = null, at = now } = this.#reported ?? {};
    if (now - this.#begunAt < this.#afterMs) return [];
    const text = renderProgress(this.what, report, { begunMs: now - this.#begunAt, reportedMs: now - at });
    const hint = text.includes("Ctrl-C") ? "" : ". Ctrl-C cancels.";
    return [colour.dim(shorten(`${FRAMES[Math.floor(now / 100) % 10]} ${text}${hint}`, columns, "end"))];
  }
}

/** A question. Its answer takes the place of the prompt. */
export interface Question {
  /** The lines to show above the answer, printable and styled. */
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
}

/** The conversation, which scrolls away, and the prompt below it, where the user can always type. */
export class Window implements Disposable {
  readonly #screen: Screen;
  readonly #input = new Editor();
  /** The prompts that Up and Down show, the oldest first, and the place in them. */
  readonly #history: string[];
  #at: number;
  /** The text of the new prompt while the editor shows an earlier prompt. */
  #draft = "";
  readonly #signal: AbortSignal;
  /** Prompts that the user has sent and that wait until the chat is idle. */
  readonly #sent: string[] = [];
  #above: string[] = [];
  #status = "";
  #work: { shown: Work; stop: AbortController; cancelled: string } | null = null;
  /** The questions that wait for an answer. The oldest one is on the screen. */
  readonly #asked: Asked[] = [];
  #isLeaving = false;
  #hasEnded = false;
  #wake: () => void = () => undefined;
  #drawing: NodeJS.Timeout | null = null;
  readonly #end = () => {
    this.#hasEnded = true;
    this.#wake();
  };

  /** @param history the prompts of earlier chats, the oldest first */
  constructor(history: readonly string[], signal: AbortSignal, screen = new Screen({ full: false })) {
    this.#history = [...history];
    this.#at = history.length;
    this.#signal = signal;
    this.#screen = screen;
    signal.addEventListener("abort", this.#end, { once: true });
    screen.on("key", (key) => this.#press(key));
    screen.on("paste", (text) => this.#paste(text));
    screen.on("resize", () => this.#draw());
    let isGone = false;
    screen.on("gone", () => {
      // Each later drawing reports it again. Leaving the session must not be cancelled.
      if (isGone) return;
      isGone = true;
      this.#sent.length = 0;
      this.#cancel();
      this.#end();
    });
  }

  get columns(): number {
    return this.#screen.size.columns;
  }

  /** The row above the prompt. */
  set status(text: string) {
    this.#status = onOneLine(text);
    this.changed();
  }

  /** Adds rows above the prompt. */
  print(rows: readonly string[]): void {
    this.#above.push(...rows);
    this.changed();
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
    while (this.#sent.length === 0 && !this.#hasEnded) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const prompt = this.#sent.shift() ?? null;
    if (prompt !== null) this.printPrompt(prompt);
    return prompt;
  }

  /** Puts `prompt` and all waiting prompts back into the input, where the user can change them and send them again. */
  giveBack(...prompt: [] | [string]): void {
    const texts = [...prompt, ...this.#sent.splice(0), this.#input.text];
    this.#input.text = texts.filter((text) => text !== "").join("\n");
    this.changed();
  }

  /**
   * Shows `work` above the prompt while `run` runs. Ctrl-C aborts the signal of `run`, with `cancelled` as the reason.
   */
  async during<T>(work: Work, cancelled: string, run: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const stop = new AbortController();
    stop.signal.addEventListener("abort", () => this.#dismiss(), { once: true });
    this.#work = { shown: work, stop, cancelled };
    const ticking = setInterval(() => this.changed(), TICK_MS);
    try {
      return await run(stop.signal);
    } finally {
      clearInterval(ticking);
      this.#work = null;
      this.#dismiss();
      this.changed();
    }
  }

  #cancel(): void {
    this.#work?.stop.abort(new Cancelled(this.#work.cancelled));
  }

  /** Shows a question in place of the prompt, after earlier questions. Null if the work ends without an answer. */
  async ask(question: Question): Promise<string | null> {
    if (this.#work === null || this.#work.stop.signal.aborted) return null;
    const answer = await new Promise<string | null>((resolve) => {
      this.#asked.push({ ...question, answer: resolve, editor: null, quietSince: performance.now() });
      if (this.#asked.length === 1) this.#show(question);
    });
    this.#asked.shift();
    const [next] = this.#asked;
    if (next !== undefined) {
      next.quietSince = performance.now();
      this.#show(next);
    }
    this.changed();
    return answer;
  }

  #show({ lines }: Question): void {
    this.print([
      ...(this.#work?.shown.take(this.columns) ?? []),
      "",
      ...lines.flatMap((line) => wrap(line, this.columns)),
    ]);
  }

  /** Ends all questions without an answer. */
  #dismiss(): void {
    for (const { answer } of this.#asked) answer(null);
  }

  /** Draws soon, but not more often than a person can see changes. */
  changed(): void {
    this.#drawing ??= setTimeout(() => this.#draw(), DRAW_MS);
  }

  #press(key: Key): void {
    const isLeaving = this.#isLeaving;
    this.#isLeaving = false;
    const [question] = this.#asked;
    if (key.name === "ctrl-c") this.#interrupt(isLeaving);
    else if (question === undefined && key.name === "ctrl-d" && this.#input.text === "") this.#end();
    else if (question === undefined || !this.#answer(question, key)) this.#edit(key);
    this.changed();
  }

  #paste(text: string): void {
    const [question] = this.#asked;
    (question === undefined ? this.#input : (this.#editorOf(question) ?? this.#input)).insert(text);
    this.changed();
  }

  /** The editor for the answer to a question; null if the key or text belongs to the prompt instead. */
  #editorOf(question: Asked): Editor | null {
    if (question.choices === null && isQuiet(question)) question.editor ??= new Editor();
    if (question.editor === null) question.quietSince = performance.now();
    return question.editor;
  }

  /** Handles a key for a question. Returns false if the key belongs to the prompt instead. */
  #answer(question: Asked, key: Key): boolean {
    const isChoice = question.choices?.some((choice) => choice.key === key.text.toLowerCase()) === true;
    if (isChoice && isQuiet(question)) {
      question.answer(key.text.toLowerCase());
      return true;
    }
    const editor = this.#editorOf(question);
    if (editor === null) return false;
    if (key.name === "return" || key.name === "enter") question.answer(editor.text);
    else if (key.name === "ctrl-d" && editor.text === "") question.answer(null);
    else editor.press(key);
    return true;
  }

  #edit(key: Key): void {
    const { name } = key;
    if (name === "return" || name === "enter") this.#send();
    else if (name === "meta-return" || name === "meta-enter") this.#input.insert("\n");
    else if (name === "up" || name === "ctrl-p") this.#recall(this.#at - 1);
    else if (name === "down" || name === "ctrl-n") this.#recall(this.#at + 1);
    else this.#input.press(key);
  }

  /** Shows an earlier prompt. */
  #recall(at: number): void {
    if (at < 0 || at > this.#history.length) return;
    if (this.#at === this.#history.length) this.#draft = this.#input.text;
    this.#at = at;
    this.#input.text = this.#history[at] ?? this.#draft;
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
    if (this.#work !== null || this.#sent.length > 0) {
      this.giveBack();
      this.#cancel();
    } else if (this.#input.text !== "") this.#input.text = "";
    else if (isLeaving) this.#end();
    else this.#isLeaving = true;
  }

  #draw(): void {
    if (this.#drawing !== null) clearTimeout(this.#drawing);
    this.#drawing = null;
    const { columns, rows } = this.#screen.size;
    const above = [...this.#above.splice(0), ...(this.#work?.shown.take(columns) ?? [])];
    this.#screen.draw(this.#live(columns, rows - 1), above);
  }

  #live(columns: number, height: number): LiveRows {
    const dim = (text: string) => colour.dim(shorten(text, columns, "end"));
    const [question] = this.#asked;
    const { rows, cursor } =
      question === undefined
        ? this.#input.view("> ", columns, Math.max(1, Math.floor(height / 2)))
        : answerRows(question, columns);
    const hint = this.#isLeaving ? [dim(LEAVING)] : [];
    const status = this.#status === "" || question !== undefined ? [] : [dim(this.#status)];
    const waiting = this.#sent.map((text) => dim(`> ${onOneLine(text.slice(0, 1_000))}`));
    const work = question === undefined ? (this.#work?.shown.live(columns) ?? []) : [];
    const room = Math.max(1, height - rows.length - status.length - hint.length);
    const before = [...[...work, ...waiting].slice(-room), ...status];
    return { rows: [...before, ...rows, ...hint], cursor: { ...cursor, row: before.length + cursor.row } };
  }

  /** Draws the remaining rows, and leaves the cursor below them. */
  [Symbol.dispose](): void {
    this.#signal.removeEventListener("abort", this.#end);
    if (this.#drawing !== null) clearTimeout(this.#drawing);
    this.#screen.draw({ rows: [""], cursor: { row: 0, column: 0 } }, this.#above);
    this.#screen[Symbol.dispose]();
  }
}

function isQuiet({ editor, quietSince }: Asked): boolean {
  return editor !== null || performance.now() - quietSince >= QUIET_MS;
}

type EditedRows = LiveRows & { cursor: NonNullable<LiveRows["cursor"]> };

/** The rows in which the user answers a question. */
function answerRows(question: Asked, columns: number): EditedRows {
  if (question.choices === null && isQuiet(question)) return (question.editor ?? new Editor()).view("? ", columns, 3);
  const rows = [
    ...(question.choices ?? []).flatMap(({ key, label }) => wrap(label, columns, "   ", `${colour.bold(key)}  `)),
    ...(isQuiet(question) ? [] : wrap(colour.dim(NOT_QUIET), columns)),
  ];
  return { rows, cursor: { row: rows.length - 1, column: 0 } };
}

/** A text that a person edits with the keys of node:readline. */
class Editor {
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

  press({ text, name, raw }: Key): void {
    if (text !== "") this.insert(text);
    else if (name !== "ctrl-d" || this.text !== "") this.#readline.write(null, raw);
  }

  view(prompt: string, columns: number, height: number): EditedRows {
    const indent = " ".repeat(prompt.length);
    // The last column stays free for the cursor.
    const options = { hard: true, wordWrap: false, trim: false };
    const rowsOf = (text: string) =>
      wrapAnsi(printableLines(text.replaceAll("\t", "    ")), Math.max(2, columns - prompt.length - 1), options)
        .split("\n")
        .map((row, index) => (index === 0 ? prompt : indent) + row);
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
