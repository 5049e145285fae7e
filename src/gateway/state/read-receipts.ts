import { encodeMessage } from "../../runtime/wire/frames.js";
import type { RpcId } from "../../runtime/wire/server-message.js";
import type { ClientSocket } from "../wire/client-socket.js";

/** The prefix of the ids of the front door's questions to the client. */
const QUESTION = "fleet-read-";

/**
 * Finds out what a client has read. The front door asks the client questions, which are requests with a method that the
 * client does not know. Any answer will do.
 */
export class ReadReceipts {
  readonly #client: ClientSocket;
  readonly #isRelayed: boolean;
  /** How many questions the front door has asked the client. */
  #asked = 0;
  /** How many of them the client has answered. A client that has answered none may be unable to answer. */
  #answered = 0;
  /**
   * By session, the number of the question that was sent behind the last end of another client's turn. Once the client
   * has answered that many questions, it has read that end.
   */
  readonly #unread = new Map<string, number>();

  /** @param isRelayed whether another front door relays the client, and asks it these questions */
  constructor(client: ClientSocket, { isRelayed }: { isRelayed: boolean }) {
    this.#client = client;
    this.#isRelayed = isRelayed;
  }

  /** Asks a first question, to know before the client's first prompt whether it answers. */
  askOnce(): void {
    if (this.#asked === 0) this.#ask();
  }

  /** Asks whether the client has read the end of a turn that was sent last. */
  askBehind(sessionId: string): void {
    this.#ask();
    this.#unread.set(sessionId, this.#asked);
  }

  /**
   * Whether the client has possibly not read the last end of another client's turn. False for a client that has never
   * answered a question.
   */
  isUnread(sessionId: string): boolean {
    return this.#answered > 0 && (this.#unread.get(sessionId) ?? 0) > this.#answered;
  }

  /** Takes the client's answer to a question. @returns false if the response answers something else */
  take(id: RpcId): boolean {
    if (typeof id !== "string" || !id.startsWith(QUESTION)) return false;
    const answered = Number(id.slice(QUESTION.length));
    if (answered <= this.#asked) this.#answered = Math.max(this.#answered, answered);
    if (this.#answered === this.#asked) this.#unread.clear();
    return true;
  }

  #ask(): void {
    if (this.#isRelayed) return;
    this.#asked++;
    this.#client.send(encodeMessage({ id: `${QUESTION}${this.#asked}`, method: "$/copilotfleet.read" }));
  }
}
