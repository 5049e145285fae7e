import { emitKeypressEvents } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

/** A screen of its own, so that what stood on the terminal is there again afterwards; without a cursor. */
const ENTER = "\x1b[?1049h\x1b[?25l";
const LEAVE = "\x1b[?25h\x1b[?1049l";
const HOME = "\x1b[H";
const CLEAR_LINE = "\x1b[K";
const CLEAR_BELOW = "\x1b[J";

/**
 * Shows `look` on the terminal again and again, until q, Ctrl-C or the signal. What it fails with ends it.
 *
 * @param everyMs the pause between two looks, in milliseconds
 */
export async function showLive(look: () => Promise<string>, everyMs: number, signal: AbortSignal): Promise<void> {
  const stop = new AbortController();
  const end = () => stop.abort();
  const onKey = (text: string | undefined, key: { name?: string; ctrl?: boolean }) => {
    if (text === "q") end();
    // In a raw terminal Ctrl-C arrives here, not as a signal.
    else if (key.ctrl === true && key.name === "c") process.kill(process.pid, "SIGINT");
  };
  signal.addEventListener("abort", end, { once: true });
  emitKeypressEvents(process.stdin);
  process.stdin.on("keypress", onKey);
  process.stdin.setRawMode(true);
  process.stdin.resume();
  process.stdout.write(ENTER);
  try {
    while (!stop.signal.aborted) {
      const text = await look();
      if (!stop.signal.aborted) process.stdout.write(`${HOME}${filling(text)}${CLEAR_BELOW}`);
      await delay(everyMs, undefined, { signal: stop.signal }).catch(() => "ended");
    }
  } finally {
    process.stdout.write(LEAVE);
    process.stdin.off("keypress", onKey);
    process.stdin.setRawMode(false);
    process.stdin.pause();
    signal.removeEventListener("abort", end);
  }
}

/** As many lines as the terminal has: more would scroll the first ones away. */
function filling(text: string): string {
  const lines = [...text.split("\n"), "", "q: quit"];
  // Some terminals say that they have none.
  const rows = process.stdout.rows > 0 ? process.stdout.rows : lines.length + 1;
  return lines
    .slice(0, rows - 1)
    .map((line) => `${line}${CLEAR_LINE}`)
    .join("\r\n");
}
