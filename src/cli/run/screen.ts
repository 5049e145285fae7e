import { EventEmitter } from "node:events";
import { emitKeypressEvents } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";
import { either } from "../../base/clock.js";
import { shorten } from "../render/table.js";

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

/** How often a live view reads and shows the current state, in milliseconds. */
export const REFRESH_MS = 2_000;

/** Shows the result of `look` again and again, until the user presses q, the signal aborts, or `look` rejects. */
export async function showLive(look: () => Promise<LiveView>, everyMs: number, signal: AbortSignal): Promise<void> {
  const stop = new AbortController();
  using screen = new FullScreen();
  let view: LiveView | undefined;
  let offset = 0;
  const draw = () => {
    if (view === undefined || stop.signal.aborted) return;
    const laidOut = layOut(view, offset, screen.size);
    offset = laidOut.offset;
    screen.draw(laidOut.lines);
  };
  screen.on("resize", draw).on("key", ({ text, name }) => {
    if (text === "q") return stop.abort();
    offset += scrollSteps(name, Math.max(1, Math.floor(screen.size.rows / 2)));
    draw();
  });
  using end = either(stop.signal, signal);
  while (!end.signal.aborted) {
    view = await look();
    draw();
    await delay(everyMs, undefined, { signal: end.signal }).catch(() => "ended");
  }
}

/** How many lines a key scrolls down (negative: up; 0: the key does not scroll). PgDn scrolls `page` lines. */
export function scrollSteps(name: string | undefined, page: number): number {
  const steps: Record<string, number> = { down: 1, j: 1, up: -1, k: -1, pagedown: page, space: page, pageup: -page };
  return steps[name ?? ""] ?? 0;
}

/** The content of a live view: sections that scroll under their headings, with fixed lines above and below them. */
export interface LiveView {
  above: readonly string[];
  /** The first line of each section is its heading. */
  sections: readonly (readonly string[])[];
  below: readonly string[];
}

interface Line {
  text: string;
  /** The heading of the line's section; null for a heading. */
  heading: string | null;
}

/** Chooses the lines that fit on the screen, from `offset` on. Returns a smaller offset if `offset` is too large. */
export function layOut(
  view: LiveView,
  offset: number,
  { rows, columns }: ScreenSize,
): { lines: string[]; offset: number } {
  const { above, sections, below } = view;
  const all = sections.flatMap((section, index): Line[] => [
    ...(index === 0 ? [] : [{ text: "", heading: sections[index - 1]?.[0] ?? null }]),
    ...section.map((text, row) => ({ text, heading: row === 0 ? null : (section[0] ?? null) })),
  ]);
  // Leave room for the last line, which shows the keys to press.
  const space = Math.max(2, rows - above.length - below.length - 1);
  const first = Math.max(0, Math.min(offset, all.length - space));
  const shown = all.slice(first, first + space).map(({ text }) => text);
  const heading = all[first]?.heading;
  if (heading != null) shown[0] = heading;
  const scroll = all.length > space ? `   ↑ ↓ PgUp PgDn: scroll   ${first + shown.length} of ${all.length} lines` : "";
  const lines = [...above, ...shown, ...below, `q: quit${scroll}`];
  return { lines: lines.slice(0, rows).map((line) => clip(line, columns)), offset: first };
}

/** Shortens a line that is too long, and removes its colours. A line that fits keeps them. */
export function clip(line: string, columns: number): string {
  const text = stripVTControlCharacters(line);
  const short = shorten(text, columns, "end");
  return short === text ? line : short;
}
