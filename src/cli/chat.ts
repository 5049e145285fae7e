import { createInterface } from "node:readline/promises";
import type { CopilotSession } from "@github/copilot-sdk";
import { isFleetError } from "../errors.js";
import type { Fleet } from "../fleet.js";
import { printTurn } from "./turn.js";

/** A conversation on the terminal, until an empty end of input (Ctrl-D) or the signal. A failed turn does not end it. */
export async function chat(fleet: Fleet, session: CopilotSession, signal: AbortSignal): Promise<void> {
  process.stderr.write(`Session ${session.sessionId}. End with Ctrl-D.\n`);
  const lines = createInterface({ input: process.stdin, output: process.stderr, prompt: "> " });
  // In a raw terminal Ctrl-C arrives here, not as a signal.
  lines.on("SIGINT", () => process.kill(process.pid, "SIGINT"));
  signal.addEventListener("abort", () => lines.close(), { once: true });
  lines.prompt();
  for await (const line of lines) {
    if (line.trim() !== "") {
      try {
        await printTurn({ json: false, signal }, (options) => fleet.send(session, line, options));
      } catch (error) {
        if (!isFleetError(error, "FLEET_TURN_FAILED")) throw error;
        process.stderr.write(`${error.message}\n`);
      }
    }
    lines.prompt();
  }
  process.stderr.write("\n");
}
