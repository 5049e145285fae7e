import type { CopilotSession } from "@github/copilot-sdk";
import { isFleetError } from "../../errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import { either } from "../../runtime/deadline.js";
import { reportInChat } from "../report.js";
import { ChatInput, TurnCancelled } from "./chat-input.js";
import { promptOf } from "./pasted.js";
import { printTurn } from "./turn.js";

/**
 * Runs a conversation on the terminal. Ctrl-D, Ctrl-C twice at the prompt, or the signal ends it. Ctrl-C during a turn
 * ends only that turn. A failed turn does not end the chat.
 */
export async function chat(fleet: Fleet, session: CopilotSession, signal: AbortSignal): Promise<void> {
  process.stderr.write(`Session ${session.sessionId}. Ctrl-C cancels a turn. Ctrl-D ends the chat.\n`);
  {
    using input = new ChatInput(signal);
    for await (const line of input.lines()) {
      if (line.trim() === "") continue;
      try {
        await input.during(async (cancelled) => {
          using stop = either(signal, cancelled);
          const output = { json: false, signal: stop.signal };
          await printTurn(output, (options) => fleet.sessions.send(session, promptOf(line), options));
        });
      } catch (error) {
        if (error instanceof TurnCancelled) process.stderr.write("The turn was cancelled.\n");
        else if (isFleetError(error)) reportInChat(error);
        else throw error;
      }
    }
  }
  process.stderr.write("\n");
}
