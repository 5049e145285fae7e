import type { CopilotSession } from "@github/copilot-sdk";
import type { Fleet } from "../fleet.js";

export interface TurnOutput {
  /** With `--json` nothing but the result may stand on standard output. */
  json: boolean;
  signal: AbortSignal;
  timeoutMs?: number;
}

/** One turn whose reply is streamed to a terminal, or printed whole to a pipe. Resolves with the reply. */
export async function printTurn(
  fleet: Fleet,
  session: CopilotSession,
  prompt: string,
  output: TurnOutput,
): Promise<string> {
  const stream = !output.json && process.stdout.isTTY === true;
  let streamed = "";
  const { text } = await fleet.send(session, prompt, {
    signal: output.signal,
    ...(output.timeoutMs === undefined ? {} : { timeoutMs: output.timeoutMs }),
    ...(stream
      ? {
          onDelta: (delta) => {
            streamed += delta;
            process.stdout.write(delta);
          },
        }
      : {}),
  });
  // A model that does not stream still has its reply shown.
  if (stream) process.stdout.write(streamed === "" ? `${text}\n` : "\n");
  else if (!output.json) process.stdout.write(`${text}\n`);
  return text;
}
