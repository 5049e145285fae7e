import { printableLines } from "../../config/values/text.js";
import { quote } from "../../errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { SendOptions } from "../../fleet/options.js";
import type { SessionView } from "../../sessions/view.js";
import { given } from "../flags/flags.js";
import { ProgressLine } from "../progress.js";
import { renderUntil } from "../render/table.js";
import { Interrupted } from "./interrupted.js";

export interface TurnOutput {
  /** With `--json`, standard output contains only the result. */
  json: boolean;
  signal: AbortSignal;
  timeoutMs?: number | undefined;
  /** Whether the session is deleted after this turn. */
  isEphemeral?: boolean;
}

/**
 * Runs one turn by calling `take`. Streams the reply to a terminal, or prints it to a pipe once it is complete. If the
 * user interrupts the turn, adds a note about the turn and its session to the {@link Interrupted} error.
 */
export async function printTurn<Taken extends { text: string; outcome: string }>(
  output: TurnOutput,
  sessionId: string,
  take: (options: SendOptions) => Promise<Taken>,
): Promise<Taken> {
  const stream = !output.json && process.stdout.isTTY === true;
  using progress = new ProgressLine("Waiting for the reply", output);
  const shown = new ShownReply();
  let hasWaited = false;
  const taken = await take({
    signal: output.signal,
    onWait: (wait) => {
      hasWaited = true;
      progress.report(wait);
    },
    ...given({ timeout: output.timeoutMs }),
    ...(stream
      ? {
          onDelta: (delta: string) => {
            progress.end();
            shown.add(delta);
          },
        }
      : {}),
  }).catch((error: unknown) => {
    const isLineRemoved = progress.end();
    shown.end();
    // Start the error on a new line, because the cursor may be after half a reply or after the terminal's ^C.
    const isLineOpen = shown.isEmpty ? output.signal.aborted && !isLineRemoved : shown.isLineOpen;
    if (stream && isLineOpen) process.stdout.write("\n");
    const { reason } = output.signal;
    if (reason instanceof Interrupted) reason.note = noteOf(sessionId, output, hasWaited);
    throw error;
  });
  progress.end();
  if (stream) {
    // Also show the reply of a model that does not stream.
    if (shown.isEmpty) shown.add(taken.text);
    shown.end();
    process.stdout.write("\n");
  }
  if (!stream && !output.json) process.stdout.write(`${taken.text}\n`);
  if (taken.outcome === "aborted" && !output.json) process.stderr.write("The turn was aborted.\n");
  return taken;
}

/** Shows a person on a terminal when a new session expires. Returns the session. */
export function showingExpiry(session: SessionView, { json }: TurnOutput): SessionView {
  const expiry = session.state === "gone" ? null : renderUntil(session.expiresAt);
  if (expiry !== null && process.stdout.isTTY === true && !json)
    process.stderr.write(`If nobody uses this session, it expires ${expiry}.\n`);
  return session;
}

/** @param hasWaited whether the prompt had to wait. If so, nobody knows whether the turn has begun. */
function noteOf(sessionId: string, { isEphemeral = false }: TurnOutput, hasWaited: boolean): string {
  const session = isEphemeral
    ? `The ephemeral session ${quote(sessionId)} was deleted.`
    : `The session ${quote(sessionId)} still exists.`;
  return `Interrupted: the turn was cancelled${hasWaited ? ", if it had begun" : ""}. ${session}`;
}

/** A reply on a terminal. It is made printable, because text from a model must not control the terminal. */
class ShownReply {
  #last = "";
  /** The end of the last piece if the next piece may complete it: half a line break (`\r`) or half a character. */
  #held = "";

  add(piece: string): void {
    const text = this.#held + piece;
    const end = /[\r\ud800-\udbff]$/.test(text) ? text.length - 1 : text.length;
    this.#held = text.slice(end);
    this.#write(text.slice(0, end));
  }

  /** Call this after the last piece. */
  end(): void {
    this.#write(this.#held);
    this.#held = "";
  }

  get isEmpty(): boolean {
    return this.#last === "" && this.#held === "";
  }

  /** Whether the text so far does not end with a line break. */
  get isLineOpen(): boolean {
    return this.#last !== "\n";
  }

  #write(text: string): void {
    if (text === "") return;
    process.stdout.write(printableLines(text));
    this.#last = text.slice(-1);
  }
}

/** Sends one prompt for `send` and `resume --prompt`, prints the reply, and leaves the session. */
export async function useOnce(
  fleet: Fleet,
  sessionId: string,
  prompt: string,
  { user, waitMs, output }: { user: string; waitMs: number | undefined; output: TurnOutput },
): Promise<{ session: SessionView; reply: string }> {
  const taken = await printTurn(output, sessionId, async (options) => {
    return await fleet.sessions.use(sessionId, prompt, { ...options, ...given({ wait: waitMs }), user });
  });
  return { session: taken.session, reply: taken.text };
}
