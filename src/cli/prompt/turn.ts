import type { Fleet } from "../../fleet/fleet.js";
import type { SendOptions } from "../../fleet/options.js";
import type { SessionView } from "../../sessions/view.js";
import { given } from "../flags/flags.js";
import { ProgressLine } from "../progress.js";

export interface TurnOutput {
  /** With `--json`, standard output contains only the result. */
  json: boolean;
  signal: AbortSignal;
  timeoutMs?: number | undefined;
}

/** Runs one turn with `take`. Streams the reply to a terminal, or prints it whole to a pipe. */
export async function printTurn<Taken extends { text: string }>(
  output: TurnOutput,
  take: (options: SendOptions) => Promise<Taken>,
): Promise<Taken> {
  const stream = !output.json && process.stdout.isTTY === true;
  using progress = new ProgressLine("Waiting for the reply", output);
  let streamed = "";
  const taken = await take({
    signal: output.signal,
    onWait: progress.report,
    ...given({ timeoutMs: output.timeoutMs }),
    ...(stream
      ? {
          onDelta: (delta: string) => {
            progress.end();
            streamed += delta;
            process.stdout.write(delta);
          },
        }
      : {}),
  }).catch((error: unknown) => {
    const isLineRemoved = progress.end();
    // Start the error on a new line, because half a reply or the terminal's ^C may stand on this one.
    const isLineOpen = streamed === "" ? output.signal.aborted && !isLineRemoved : !streamed.endsWith("\n");
    if (stream && isLineOpen) process.stdout.write("\n");
    throw error;
  });
  progress.end();
  // Also print the reply of a model that does not stream.
  if (stream) process.stdout.write(streamed === "" ? `${taken.text}\n` : "\n");
  else if (!output.json) process.stdout.write(`${taken.text}\n`);
  return taken;
}

/** Sends one prompt for `send` and `resume --prompt`, prints the reply, and leaves the session. */
export async function useOnce(
  fleet: Fleet,
  sessionId: string,
  prompt: string,
  { user, waitMs, output }: { user: string; waitMs: number | undefined; output: TurnOutput },
): Promise<{ session: SessionView; reply: string }> {
  const taken = await printTurn(output, async (options) => {
    return await fleet.sessions.use(sessionId, prompt, { ...options, ...given({ waitMs }), user });
  });
  return { session: taken.session, reply: taken.text };
}
