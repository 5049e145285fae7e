import type { Fleet } from "../../fleet/fleet.js";
import type { Door } from "../flags/door.js";
import { Approvals, Questions } from "./answers.js";
import { type Answers, type Backend, DoorBackend, FleetBackend } from "./backends.js";
import { Chat } from "./chat.js";
import { InputHistory } from "./input-history.js";
import { MarkdownStream } from "./markdown.js";
import { Window } from "./window.js";

export interface ChatRequest {
  /** Null for a new session. */
  sessionId: string | null;
  model?: string | undefined;
  /** The title of a new session. */
  title?: string | undefined;
  /** Ends the chat. */
  signal: AbortSignal;
}

/** The parts of a chat that differ between the fleet and a front door. */
interface Place {
  /** The user, or the front door. Each user and each front door has a separate input history. */
  owner: string;
  connect: (answers: Answers) => Backend;
  /** The flags that `copilotfleet chat` needs to continue a session in the same way. */
  flags: string;
}

/** Runs a chat as a user of this fleet until the person ends it. @throws the signal's reason if the signal ends it. */
export async function chatAs(user: string, fleet: Fleet, request: ChatRequest): Promise<void> {
  const connect = (answers: Answers) => new FleetBackend(fleet, user, answers, request.title);
  await start({ owner: user, connect, flags: `--user ${user}` }, fleet, request);
}

/** Like {@link chatAs}, but runs the chat at a front door. */
export async function chatAt(door: Door, fleet: Fleet, request: ChatRequest): Promise<void> {
  const connect = (answers: Answers) => new DoorBackend(door, answers);
  // Use the address, because only the front door knows the token's user. The spaces rule out a clash with a user's id.
  const owner = `front door ${door.address.host}:${door.address.port}`;
  await start({ owner, connect, flags: door.flags }, fleet, request);
}

async function start({ owner, connect, flags }: Place, { stateRoot }: Fleet, request: ChatRequest): Promise<void> {
  const { sessionId, model, signal } = request;
  const markdown = await MarkdownStream.create();
  const history = new InputHistory(stateRoot, owner);
  const resumeWith = (id: string) => `copilotfleet chat ${id} ${flags}`;
  {
    using window = new Window(history.load(), signal);
    const questions = new Questions(window);
    const backend = connect({
      onPermissionRequest: new Approvals(window).handler,
      onUserInputRequest: questions.onUserInput,
      onElicitationRequest: questions.onElicitation,
    });
    try {
      await Chat.run({ window, backend, history, markdown, signal, resumeWith }, sessionId, model);
    } finally {
      await backend.close();
    }
  }
  signal.throwIfAborted();
}
