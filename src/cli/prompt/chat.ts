import { createInterface, type Interface } from "node:readline";
import { PassThrough } from "node:stream";
import type { CopilotSession } from "@github/copilot-sdk";
import { isFleetError } from "../../errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import { either } from "../../runtime/deadline.js";
import { reportInChat } from "../report.js";
import { PastedText, promptOf } from "./pasted.js";
import { printTurn } from "./turn.js";

const PASTES_MARKED = "\x1b[?2004h";
const PASTES_PLAIN = "\x1b[?2004l";
const CTRL_C = "\x03";
const ENDS = "Ctrl-C again, or Ctrl-D, ends the chat.";

/**
 * Runs a conversation on the terminal. Ctrl-D, Ctrl-C twice at the prompt, or the signal ends it. Ctrl-C during a turn
 * ends only that turn. A failed turn does not end the chat.
 */
export async function chat(
  fleet: Fleet,
  session: CopilotSession,
  { user, signal }: { user: string; signal: AbortSignal },
): Promise<void> {
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
        else if (isFleetError(error)) reportInChat(error, { USER: user });
        else throw error;
      }
    }
  }
  process.stderr.write("\n");
}

/** Reads the lines that a person types between replies. Keeps text that is typed during a turn until the turn ends. */
class ChatInput implements Disposable {
  readonly #keys = new PassThrough();
  readonly #lines: Interface;
  readonly #pasted = new PastedText();
  readonly #early: string[] = [];
  #turn: AbortController | undefined;
  #isLeaving = false;
  readonly #onData = (chunk: string) => this.#receive(chunk);

  constructor(signal: AbortSignal) {
    const { stdin, stderr } = process;
    this.#lines = createInterface({ input: this.#keys, output: stderr, prompt: "> ", terminal: true });
    this.#lines.on("SIGINT", () => this.#interrupt());
    signal.addEventListener("abort", () => this.#lines.close(), { once: true });
    stdin.setEncoding("utf8");
    stdin.setRawMode(true);
    stdin.on("data", this.#onData);
    stdin.once("end", () => this.#lines.close());
    stderr.write(PASTES_MARKED);
  }

  async *lines(): AsyncGenerator<string> {
    this.#lines.prompt();
    for await (const line of this.#lines) {
      yield line;
      this.#lines.prompt();
    }
  }

  /** Runs one turn. Ctrl-C aborts the signal that the turn gets. */
  async during<T>(turn: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const controller = new AbortController();
    this.#turn = controller;
    try {
      return await turn(controller.signal);
    } finally {
      this.#turn = undefined;
      for (const text of this.#early.splice(0)) this.#keys.write(text);
    }
  }

  #receive(chunk: string): void {
    const text = this.#pasted.read(chunk);
    if (text !== CTRL_C) this.#isLeaving = false;
    if (this.#turn === undefined) this.#keys.write(text);
    else if (text.includes(CTRL_C)) {
      this.#early.length = 0;
      this.#turn.abort(new TurnCancelled());
    } else this.#early.push(text);
  }

  /** Ctrl-C at the prompt clears the line, as in a shell. On an empty line, the second Ctrl-C ends the chat. */
  #interrupt(): void {
    if (this.#lines.line === "") {
      if (this.#isLeaving) {
        this.#lines.close();
        return;
      }
      this.#isLeaving = true;
      process.stderr.write(`\n${ENDS}\n`);
    } else {
      this.#lines.write(null, { ctrl: true, name: "e" });
      this.#lines.write(null, { ctrl: true, name: "u" });
    }
    this.#lines.prompt();
  }

  [Symbol.dispose](): void {
    const { stdin, stderr } = process;
    stderr.write(PASTES_PLAIN);
    this.#lines.close();
    stdin.off("data", this.#onData);
    stdin.setRawMode(false);
    stdin.pause();
  }
}

/** The person at the terminal pressed Ctrl-C during a turn. */
class TurnCancelled extends Error {}
