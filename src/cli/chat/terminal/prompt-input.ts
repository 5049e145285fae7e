import { printableLines } from "../../../config/values/text.js";
import { colour } from "../../render/colour.js";
import { shorten } from "../../render/table.js";
import { EDITING } from "./bindings.js";
import { Editor } from "./editor.js";
import type { Key } from "./keyboard.js";
import type { LiveRows } from "./screen.js";

const PROMPT = "> ";

interface Search {
  query: string;
  /** The position of the match in the history; the length of the history if there is no match. */
  at: number;
  /** The editor's text before the search began. */
  before: string;
}

/** The place where a person types prompts: an editor with a history that can be searched. */
export class PromptInput {
  readonly #editor = new Editor();
  /** Earlier prompts, the oldest first. */
  readonly #history: string[];
  readonly #words: readonly string[];
  /** The index in the history of the prompt that the editor shows; the length of the history for a new prompt. */
  #at: number;
  /** The text of the new prompt while the editor shows an earlier prompt. */
  #draft = "";
  #search: Search | null = null;

  /** @param words the texts that the Tab key completes */
  constructor(history: readonly string[], words: readonly string[]) {
    this.#history = [...history];
    this.#words = words;
    this.#at = history.length;
  }

  get isSearching(): boolean {
    return this.#search !== null;
  }

  get text(): string {
    return this.#editor.text;
  }

  set text(text: string) {
    this.#editor.text = text;
    this.#search = null;
    this.#at = this.#history.length;
  }

  paste(text: string): void {
    this.#search = null;
    this.#editor.insert(text);
  }

  /** Handles a key. Returns true if the key sends the prompt. */
  key(key: Key): boolean {
    if (this.#search !== null && this.#searchKey(this.#search, key)) return false;
    this.#search = null;
    if (key.name === "return") return this.#enter();
    if (key.name === "ctrl-r") this.#search = { query: "", at: this.#history.length, before: this.text };
    else if (key.name === "up" || key.name === "ctrl-p") this.#up();
    else if (key.name === "down" || key.name === "ctrl-n") this.#down();
    else if (key.name === "tab") this.#tab();
    else if (key.text !== "") this.#editor.insert(key.text);
    else EDITING[key.name]?.(this.#editor);
    return false;
  }

  /** Returns the prompt, adds it to the history, and empties the editor. */
  take(): string {
    const { text } = this;
    if (text.trim() !== "" && text !== this.#history.at(-1)) this.#history.push(text);
    this.text = "";
    this.#draft = "";
    return text;
  }

  view(columns: number, height: number): LiveRows {
    if (this.#search === null) return this.#editor.view(PROMPT, { columns, height });
    const isFound = this.#search.query === "" || this.#search.at < this.#history.length;
    const head = `${isFound ? "search" : "not found"}: ${printableLines(this.#search.query)}`;
    const { rows, cursor } = this.#editor.view(PROMPT, { columns, height: Math.max(1, height - 1) });
    return { rows: [colour.dim(shorten(head, columns, "end")), ...rows], cursor: { ...cursor, row: cursor.row + 1 } };
  }

  /** Handles Enter: returns true to send the prompt, or replaces a backslash at the end with a line break. */
  #enter(): boolean {
    if (!this.#editor.isAtEnd || !this.text.endsWith("\\")) return true;
    this.#editor.backspace();
    this.#editor.insert("\n");
    return false;
  }

  #up(): void {
    if (this.#editor.up() || this.#at === 0) return;
    if (this.#at === this.#history.length) this.#draft = this.text;
    this.#show(this.#at - 1);
  }

  #down(): void {
    if (this.#editor.down() || this.#at === this.#history.length) return;
    this.#show(this.#at + 1);
  }

  #show(at: number): void {
    this.#at = at;
    this.#editor.text = this.#history[at] ?? this.#draft;
  }

  #tab(): void {
    const { text } = this;
    const [word, ...more] = text === "" ? [] : this.#words.filter((each) => each.startsWith(text));
    if (word !== undefined && more.length === 0) this.#editor.text = `${word} `;
    else if (word === undefined) this.#editor.insert("\t");
  }

  /** Handles a key during a search. Returns false for a key that ends the search and then has its usual effect. */
  #searchKey(search: Search, key: Key): boolean {
    if (key.text !== "") this.#find(search, search.query + key.text, search.at);
    else if (key.name === "backspace") this.#find(search, search.query.slice(0, -1), this.#history.length);
    else if (key.name === "ctrl-r") this.#find(search, search.query, search.at - 1);
    else if (key.name === "return") this.#search = null;
    else if (key.name === "ctrl-g" || key.name === "ctrl-c" || key.name === "meta-escape") {
      this.text = search.before;
    } else return false;
    return true;
  }

  /** Finds the newest prompt that contains the query, at the position `from` or before it. */
  #find(search: Search, query: string, from: number): void {
    const start = Math.min(from, this.#history.length - 1);
    const at = this.#history.findLastIndex((text, index) => index <= start && text.includes(query));
    const isFound = query !== "" && at !== -1;
    this.#search = { ...search, query, at: isFound ? at : this.#history.length };
    if (isFound) this.#editor.text = this.#history[at] ?? "";
  }
}
