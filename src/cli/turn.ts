import type { SendOptions } from "../sessions/open-session.js";
import { waitNotice } from "./waiting.js";

export interface TurnOutput {
  /** With `--json` nothing but the result may stand on standard output. */
  json: boolean;
  signal: AbortSignal;
  timeoutMs?: number | undefined;
}

/** One turn, begun by `take`, whose reply is streamed to a terminal or printed whole to a pipe. */
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
  // A model that does not stream still has its reply shown.
  if (stream) process.stdout.write(streamed === "" ? `${taken.text}\n` : "\n");
  else if (!output.json) process.stdout.write(`${taken.text}\n`);
  return taken;
}
