import { emitKeypressEvents } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";
import { shorten } from "../render/table.js";

/** How often a live view shows the current state, in milliseconds. */
export const REFRESH_MS = 2_000;

/** Switches to the alternate screen, hides the cursor and turns line wrapping off. */
const ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME = "\x1b[H";
const CLEAR_LINE = "\x1b[K";
const CLEAR_BELOW = "\x1b[J";

interface Key {
  name?: string;
  ctrl?: boolean;
}

/** Shows the result of `look` on the terminal, repeatedly, until q, Ctrl-C, the signal, or an error of `look`. */
export async function showLive(look: () => Promise<LiveView>, everyMs: number, signal: AbortSignal): Promise<void> {
  const stop = new AbortController();
  const end = () => stop.abort();
  let view: LiveView | undefined;
  let offset = 0;
  const draw = () => {
    if (view === undefined || stop.signal.aborted) return;
    const laidOut = layOut(view, offset, screen());
    offset = laidOut.offset;
    const lines = laidOut.lines.map((line) => `${line}${CLEAR_LINE}`);
    process.stdout.write(`${HOME}${lines.join("\r\n")}${CLEAR_BELOW}`);
  };
  const onKey = (text: string | undefined, key: Key) => {
    if (text === "q") end();
    // In raw mode, Ctrl-C arrives here and not as a signal.
    else if (key.ctrl === true && key.name === "c") process.kill(process.pid, "SIGINT");
    else {
      offset += linesOf(key);
      draw();
    }
  };
  signal.addEventListener("abort", end, { once: true });
  emitKeypressEvents(process.stdin);
  process.stdin.on("keypress", onKey);
  process.stdout.on("resize", draw);
  process.stdin.setRawMode(true);
  process.stdin.resume();
  process.stdout.write(ENTER);
  try {
    while (!stop.signal.aborted) {
      view = await look();
      draw();
      await delay(everyMs, undefined, { signal: stop.signal }).catch(() => "ended");
    }
  } finally {
    process.stdout.write(LEAVE);
    process.stdin.off("keypress", onKey);
    process.stdout.off("resize", draw);
    process.stdin.setRawMode(false);
    process.stdin.pause();
    signal.removeEventListener("abort", end);
  }
}

function linesOf({ name = "" }: Key): number {
  const page = Math.max(1, Math.floor(screen().rows / 2));
  const steps: Record<string, number> = { down: 1, j: 1, up: -1, k: -1, pagedown: page, space: page, pageup: -page };
  return steps[name] ?? 0;
}

/** The size of the terminal. Some terminals report 0 rows or columns, so those become 24 and 80. */
function screen(): Screen {
  const { rows, columns } = process.stdout;
  return { rows: rows > 0 ? rows : 24, columns: columns > 0 ? columns : 80 };
}

/** The content of a live view: sections that scroll under their headings, between fixed lines at the top and the bottom. */
export interface LiveView {
  above: readonly string[];
  /** The first line of each section is its heading. */
  sections: readonly (readonly string[])[];
  below: readonly string[];
}

export interface Screen {
  rows: number;
  columns: number;
}

interface Line {
  text: string;
  /** The heading of the line's section; null for a heading. */
  heading: string | null;
}

/** Chooses the lines that fit on the screen. Returns a smaller offset if `offset` is beyond the last lines. */
export function layOut(view: LiveView, offset: number, { rows, columns }: Screen): { lines: string[]; offset: number } {
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

/** Shortens a line that is too long, and removes its colours. The lines of tables already fit. */
function clip(line: string, columns: number): string {
  const text = stripVTControlCharacters(line);
  const short = shorten(text, columns, "end");
  return short === text ? line : short;
}
