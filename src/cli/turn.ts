import type { CopilotSession } from "@github/copilot-sdk";
import { type ErrorText, type FleetError, isFleetError, quote, type Suggestion } from "../base/errors.js";
import { asSentence } from "../base/values/text.js";
import type { Fleet } from "../fleet/fleet.js";
import type { SendOptions } from "../hosts/options.js";
import { isStoreTrouble } from "../sessions/problems.js";
import type { SessionView } from "../sessions/view.js";
import { given } from "./flags/flags.js";
import { ProgressLine } from "./progress.js";
import { Interrupted } from "./prompt.js";
import { PrintablePieces } from "./render/layout.js";
import { renderUntil } from "./render/table.js";

interface TurnOutput {
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
  const onDelta = (delta: string) => {
    progress.end();
    shown.add(delta);
  };
  let hasWaited = false;
  const taken = await take({
    signal: output.signal,
    onWait: (wait) => {
      hasWaited = true;
      progress.report(wait);
    },
    ...given({ timeout: output.timeoutMs }),
    ...given({ onDelta: stream ? onDelta : undefined }),
  }).catch((error: unknown) => {
    const isLineRemoved = progress.end();
    shown.end();
    // Start the error on a new line, because the cursor may be after half a reply or after the terminal's ^C.
    const isLineOpen = shown.last === "" ? output.signal.aborted && !isLineRemoved : shown.last !== "\n";
    if (stream && isLineOpen) process.stdout.write("\n");
    const { reason } = output.signal;
    if (reason instanceof Interrupted) reason.note = noteOf(sessionId, output, hasWaited);
    throw error;
  });
  progress.end();
  if (stream) {
    shown.end();
    // Also show the reply of a model that does not stream.
    if (shown.last === "") shown.add(taken.text);
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
  readonly #pieces = new PrintablePieces();
  /** The last character so far; empty before the first one. */
  last = "";

  add(piece: string): void {
    this.#write(this.#pieces.add(piece));
  }

  /** Call this after the last piece. */
  end(): void {
    this.#write(this.#pieces.end());
  }

  #write(text: string): void {
    process.stdout.write(text);
    this.last = text.slice(-1) || this.last;
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

/** Returns the state of a session after its prompt failed; null if the fleet cannot read it. */
export async function whatBecameOf(
  fleet: Fleet,
  id: string,
  { user, ephemeral }: { user: string; ephemeral: boolean },
): Promise<SessionView | null> {
  try {
    const view = await fleet.sessions.get(id, { user });
    // An ephemeral session is deleted when the fleet closes, because its only prompt failed. So report it as gone.
    return ephemeral ? { ...view, state: "gone", sizeBytes: 0 } : view;
  } catch (error) {
    if (isFleetError(error)) return null;
    throw error;
  }
}

/** Adds to the error of a session's first prompt whether the session still exists and how to continue. */
export function afterPrompt(error: FleetError, session: SessionView | null): FleetError {
  if (session === null) return error;
  const { id, owner, state } = session;
  const remains =
    state === "gone"
      ? `The ephemeral session ${quote(id)} was deleted.`
      : `The session ${quote(id)} was created and still exists.`;
  // While the store fails, for example on a full disk, another prompt fails in the same way.
  const send: Suggestion[] = isStoreTrouble(error) ? [] : [`copilotfleet send ${id} TEXT --user ${owner}`];
  const goOn: Suggestion[] = state === "gone" ? [] : [...send, `copilotfleet delete ${id}`];
  const change = ({ message, suggestions }: ErrorText) => ({
    message: `${asSentence(message)} ${remains}`,
    suggestions: [...suggestions.filter((suggestion) => !suggestion.includes(id)), ...goOn],
  });
  return error.reworded(change, { session });
}

/** Rethrows the error of a `create --prompt` that created no session. Adds this fact, and that no prompt was sent. */
export function withoutSession(error: unknown): never {
  // If the store failed, nobody knows whether it recorded the session, so add nothing.
  const isUnknown: boolean = isStoreTrouble(error);
  if (isUnknown || !isFleetError(error)) throw error;
  const change = ({ message }: ErrorText) => ({
    message: `${asSentence(message)} No session was created, and the prompt was not sent.`,
  });
  throw error.reworded(change, { session: null });
}

interface Interruptible {
  user: string;
  /** The signal that Ctrl-C aborts. */
  signal: AbortSignal;
}

/** Runs `create`. If the user interrupts it, deletes the session, and notes on the Interrupted error what remains. */
export async function createInterruptibly(
  fleet: Fleet,
  { user, signal }: Interruptible,
  create: () => Promise<CopilotSession>,
): Promise<CopilotSession> {
  const begunMs = Date.now();
  try {
    const session = await create();
    // The user may have pressed Ctrl-C when it was too late to cancel the creation.
    if (signal.aborted) await fleet.sessions.delete([session.sessionId], { user });
    signal.throwIfAborted();
    return session;
  } catch (error) {
    const { reason } = signal;
    // If the store failed, nobody knows whether it recorded the session.
    const session = isStoreTrouble(error)
      ? `a session may have been created. To see it: copilotfleet list --user ${user}`
      : "no session was created.";
    if (reason instanceof Interrupted)
      reason.note = `Interrupted: ${session}${await serverNote(fleet, user, begunMs).catch(() => "")}`;
    throw error;
  }
}

/** A sentence about the user's server if it was started since `sinceMs` and still runs; otherwise empty. */
async function serverNote(fleet: Fleet, user: string, sinceMs: number): Promise<string> {
  const servers = await fleet.servers.list({ user });
  const started = servers.find(({ startedAt }) => startedAt !== null && Date.parse(startedAt) >= sinceMs);
  return started === undefined ? "" : ` Its server still runs. To stop it: copilotfleet stop ${started.id}`;
}
