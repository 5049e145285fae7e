import { answerRequest, followRequests, listRequests } from "../../../peers/sessions/requests.js";
import { NEVER } from "../../../runtime/clock.js";
import type { AgentRequest, RequestChange } from "../../../sessions/requests/request.js";
import type { AnswerOptions } from "../../options.js";
import { Group } from "../group.js";

/** The permissions and questions of the agent in the sessions of all users. Its methods are those of `fleet.sessions`. */
export abstract class RequestGroup extends Group {
  /**
   * Lists the permissions and questions that the agent asks in the user's turns of a session, on any host, the oldest first.
   * Turns with `interactive` ask in this way. Only the user whose turn asks sees them. Those that a client of the front door,
   * `chat` or the caller's own handler answers are not included.
   */
  async requests(id: string, { user }: { user: string }): Promise<AgentRequest[]> {
    return await listRequests(this.parts, id, user);
  }

  /**
   * Answers one of {@link requests}: a permission with `decision`, a question with `answer`. Resolves with the request and its
   * outcome.
   *
   * @param options.reason for a denial: the text that the model reads
   * @throws FleetError `FLEET_REQUEST_NOT_FOUND`; `FLEET_REQUEST_CLOSED` when it no longer waits; `FLEET_USAGE_INVALID` when the
   * answer does not fit the request.
   */
  async answer(id: string, requestId: string, options: AnswerOptions): Promise<AgentRequest> {
    const { user, ...answer } = options;
    return await answerRequest(this.parts, { id, user, request: requestId, answer });
  }

  /**
   * Yields a change whenever one of {@link requests} is opened or closed, until the signal aborts. Begin to follow first, and
   * then list the requests, so that you miss none.
   */
  followRequests(
    id: string,
    { user, signal = NEVER }: { user: string; signal?: AbortSignal },
  ): AsyncGenerator<RequestChange, void, undefined> {
    return followRequests(this.parts, id, { user, signal });
  }
}
