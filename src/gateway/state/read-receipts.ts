import { encodeMessage } from "../../runtime/wire/frames.js";
import type { RpcId } from "../../runtime/wire/server-message.js";
import type { ClientSocket } from "../wire/client-socket.js";

/** The prefix of the ids of the front door's questions to the client. */
const QUESTION = "fleet-read-";

/**
 * Finds out what a client has read. The front door sends the client requests with an unknown method. The client's error
 * answer shows that it has read everything before the request. "Question" means such a request here.
 */
export class ReadReceipts {
  readonly #client: ClientSocket;
  readonly #isRelayed: boolean;
  /** How many questions the front door has asked the client. */
  #asked = 0;
  /**
   * The number of the last question that the client has answered. 0 if it has answered none. Some clients never answer.
   */
  #answered = 0;
  /**
   * For each session, the number of the question that followed the last end of a turn (see {@link askBehind}). The
   * client's answer proves that it has read that end.
   */
  readonly #unread = new Map<string, number>();

  /** @param isRelayed whether another front door relays the client. That door then asks the questions. */
  constructor(client: ClientSocket, { isRelayed }: { isRelayed: boolean }) {
    this.#client = client;
    this.#isRelayed = isRelayed;
  }

  /** Asks a first question, so that the door knows before the client's first prompt whether the client answers. */
  askOnce(): void {
    if (this.#asked === 0) this.#ask();
  }

  /** Asks whether the client has read the end of a turn that the door has just sent. */
  askBehind(sessionId: string): void {
    this.#ask();
    this.#unread.set(sessionId, this.#asked);
  }

  /**
   * Whether the client might not have read the end of a turn that {@link askBehind} last asked about in this session.
   * False for a client that has never answered a question.
   */
  isUnread(sessionId: string): boolean {
    return this.#answered > 0 && (this.#unread.get(sessionId) ?? 0) > this.#answered;
  }

  /** Records the client's answer to a question. @returns false if the response answers something else */
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
