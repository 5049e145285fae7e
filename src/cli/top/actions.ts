import { stripVTControlCharacters } from "node:util";
import { countOf, printable } from "../../config/values/text.js";
import { isFleetError } from "../../errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { Stopped } from "../../pool/stop/stop.js";
import { wrap } from "../render/table.js";
import { PlainTranscript } from "../render/transcript/transcript.js";
import type { Action } from "./keys.js";
import type { TopModel } from "./model.js";

/** The page with a log shows this many of its last lines. */
const LOG_LINES = 1_000;

/** The page with a transcript shows this many of its last turns. */
const TRANSCRIPT_TURNS = 50;

const PROGRESS: Readonly<Record<Action, string>> = {
  drain: "Draining",
  restart: "Restarting",
  evict: "Evicting",
  logs: "Reading the log of",
  transcript: "Reading the transcript of",
};

interface Act {
  action: Action;
  target: string;
  /** The owner of the target; undefined if the target is not a session. */
  owner: string | undefined;
  /** The width of the screen. */
  columns: number;
}

/** Performs an action. Writes its progress, and then its outcome or its error, to `model.message`. Never rejects. */
export async function perform(fleet: Fleet, model: TopModel, act: Act, signal: AbortSignal): Promise<void> {
  model.message = `${PROGRESS[act.action]} ${act.target} …`;
  try {
    model.message = await run(fleet, model, act, signal);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    model.message = isFleetError(error) ? `${message} [${error.code}]` : message;
  }
}

function describeStop({ id, outcome, cut }: Stopped): string {
  const cutTurns = cut.length === 0 ? "" : ` It cut ${countOf(cut.length, "turn")}: ${cut.join(", ")}.`;
  return `Server ${id}: ${outcome}.${cutTurns}`;
}

function logLines(lines: readonly string[], columns: number): string[] {
  return lines.length === 0 ? ["The log is empty."] : lines.flatMap((line) => wrap(printable(line), columns));
}

/** Resolves with the text of the outcome; null if the action opened a page instead. */
async function run(
  { servers, sessions, config }: Fleet,
  model: TopModel,
  { action, target, owner, columns }: Act,
  signal: AbortSignal,
): Promise<string | null> {
  const request = { drainTimeout: config.drain.timeoutMs, signal };
  switch (action) {
    case "drain": {
      const { stopped } = await servers.stop([target], request);
      return stopped.map(describeStop).join(" ");
    }
    case "restart": {
      const restarted = await servers.restart([target], request);
      return restarted.servers.map(({ id, state }) => `Server ${id}: ${state}.`).join(" ");
    }
    case "evict": {
      const { evicted, skipped } = await sessions.evict({ ids: [target] });
      if (evicted.length > 0) return `Session ${target}: evicted.`;
      return skipped.map(({ id, reason }) => `Session ${id}: not evicted (${reason}).`).join(" ");
    }
    case "logs": {
      const { lines, log } = await servers.logEnd(target, { lines: LOG_LINES });
      model.open(`Log of ${target}: ${log}`, logLines(lines, columns));
      return null;
    }
    case "transcript": {
      // Read the transcript as the session's owner, because top is for people who control the whole fleet.
      if (owner === undefined) return `Session ${target} does not exist any more.`;
      const { entries } = await sessions.transcript(target, { user: owner, turns: TRANSCRIPT_TURNS, signal });
      const text = new PlainTranscript();
      const lines = entries.flatMap((entry) => stripVTControlCharacters(text.entry(entry)).trimEnd().split("\n"));
      const wrapped = lines.flatMap((line) => wrap(line, columns));
      model.open(`Transcript of ${target}`, wrapped.length === 0 ? ["The session has had no turn."] : wrapped);
      return null;
    }
  }
}
