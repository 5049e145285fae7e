import { setImmediate as yieldToOthers } from "node:timers/promises";
import type { TranscriptEntry } from "../../runtime/history/transcript.js";
import { colour } from "../render/colour.js";
import { shorten } from "../render/table.js";
import type { Conversation } from "./conversation/conversation.js";
import type { MarkdownStream } from "./markdown/stream.js";
import { onOneLine } from "./terminal/layout.js";
import type { Window } from "./terminal/window.js";

/** How many turns a resumed chat shows, and how much of each text, in characters. */
const LAST_TURNS = 3;
const LONGEST = 4_000;

interface Shown {
  conversation: Conversation;
  /** Aborts the reading and the rendering. */
  signal: AbortSignal;
}

/** Shows the last turns of a resumed session. */
export async function showLastTurns(window: Window, markdown: MarkdownStream, { conversation, signal }: Shown) {
  const entries = await conversation.past(signal, LAST_TURNS);
  if (entries.length > 0) window.print([""]);
  const hidden = (entries[0]?.turn ?? 1) - 1;
  if (hidden > 0) {
    window.say(`${hidden} earlier ${hidden === 1 ? "turn" : "turns"}: /history shows everything.`, colour.dim);
  }
  await show(window, markdown, { entries: entries.map(shortened), signal });
}

/** Shows all turns of a session. */
export async function showHistory(window: Window, markdown: MarkdownStream, { conversation, signal }: Shown) {
  const entries = await conversation.past(signal);
  if (entries.length === 0) window.say("The session has no turns.");
  await show(window, markdown, { entries, signal });
}

interface Read {
  entries: readonly TranscriptEntry[];
  signal: AbortSignal;
}

async function show(window: Window, markdown: MarkdownStream, { entries, signal }: Read): Promise<void> {
  for (const [index, { role, text, attachments, failure }] of entries.entries()) {
    if (role === "user") {
      if (index > 0) window.print([""]);
      window.printPrompt(text);
      if (attachments.length > 0) window.say(`  attached: ${attachments.join(", ")}`, colour.dim);
    } else if (role === "tool") {
      if (entries[index - 1]?.role !== "tool") window.print([""]);
      window.print([colour.dim(shorten(`⏺ ${onOneLine(text)}`, window.columns, "end"))]);
    } else if (failure !== null) window.say(failure, colour.yellow);
    else await showText(window, markdown, { text, signal });
  }
}

async function showText(
  window: Window,
  markdown: MarkdownStream,
  { text, signal }: { text: string; signal: AbortSignal },
): Promise<void> {
  window.print([""]);
  markdown.add(text);
  for (let more = true; more && !signal.aborted; ) {
    const taken = markdown.take(window.columns);
    window.print(taken.rows);
    more = taken.more;
    if (more) await yieldToOthers();
  }
  const rest = markdown.end(window.columns);
  signal.throwIfAborted();
  window.print(rest);
}

function shortened(entry: TranscriptEntry): TranscriptEntry {
  if (entry.text.length <= LONGEST) return entry;
  return { ...entry, text: `${entry.text.slice(0, LONGEST)}\n\n… /history shows the rest.` };
}
