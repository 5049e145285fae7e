import { emitKeypressEvents } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { type LiveView, layOut, type Screen } from "./scroll.js";

/** A screen of its own, so that what stood on the terminal is there again afterwards; without a cursor or line wrapping. */
const ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME = "\x1b[H";
const CLEAR_LINE = "\x1b[K";
const CLEAR_BELOW = "\x1b[J";

interface Key {
  name?: string;
  ctrl?: boolean;
}

/**
 * Shows `look` on the terminal again and again, until q, Ctrl-C or the signal. What it fails with ends it.
 *
 * @param everyMs the pause between two looks, in milliseconds
 */
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
    // In a raw terminal Ctrl-C arrives here, not as a signal.
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

/** How far a key scrolls. */
function linesOf({ name }: Key): number {
  const page = Math.max(1, Math.floor(screen().rows / 2));
  switch (name) {
    case "down":
    case "j":
      return 1;
    case "up":
    case "k":
      return -1;
    case "pagedown":
    case "space":
      return page;
    case "pageup":
      return -page;
    default:
      return 0;
  }
}

/** Some terminals say that they have no lines or columns. */
function screen(): Screen {
  const { rows, columns } = process.stdout;
  return { rows: rows > 0 ? rows : 24, columns: columns > 0 ? columns : 80 };
}
