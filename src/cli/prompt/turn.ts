import type { SendOptions } from "../../sessions/use/open-session.js";
import { waitNotice } from "../waiting.js";

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
  let streamed = "";
  const taken = await take({
    signal: output.signal,
    ...waitNotice(output.json),
    ...(output.timeoutMs === undefined ? {} : { timeoutMs: output.timeoutMs }),
    ...(stream
      ? {
          onDelta: (delta: string) => {
            streamed += delta;
            process.stdout.write(delta);
          },
        }
      : {}),
  }).catch((error: unknown) => {
    // Start the error on a new line, because half a reply or the terminal's ^C may stand on this one.
    const isLineOpen = streamed === "" ? output.signal.aborted : !streamed.endsWith("\n");
    if (stream && isLineOpen) process.stdout.write("\n");
    throw error;
  });
  // Also print the reply of a model that does not stream.
  if (stream) process.stdout.write(streamed === "" ? `${taken.text}\n` : "\n");
  else if (!output.json) process.stdout.write(`${taken.text}\n`);
  return taken;
}
