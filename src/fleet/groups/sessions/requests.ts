import { answerRequest, followRequests, listRequests } from "../../../peers/sessions/requests.js";
import { NEVER } from "../../../runtime/clock.js";
import type { AgentRequest, RequestChange } from "../../../sessions/requests/request.js";
import type { AnswerOptions } from "../../options.js";
import { Group } from "../group.js";

/**
 * The methods of `fleet.sessions` for agent requests: the permissions and questions for which the agent asks a user.
 */
export abstract class RequestGroup extends Group {
  /**
   * Lists the agent requests that wait for the user's answer in a session, on any host, oldest first. Only turns with
   * `interactive` make such requests, and only the user of the turn sees them. Leaves out requests that are put to a
   * client of the front door, to `chat` or to the caller's own handler.
   */
  async requests(id: string, { user }: { user: string }): Promise<AgentRequest[]> {
    return await listRequests(this.parts, id, user);
  }

  /**
   * Answers one of {@link requests}: a permission with `decision`, a question with `answer`. Resolves with the request and its
   * outcome.
   *
   * @param options.reason for a denial: the text that the model reads
   * @throws FleetError `FLEET_REQUEST_NOT_FOUND`; `FLEET_REQUEST_CLOSED` when the request no longer waits;
   * `FLEET_USAGE_INVALID` when the answer does not fit the request.
   */
  async answer(id: string, requestId: string, options: AnswerOptions): Promise<AgentRequest> {
    const { user, ...answer } = options;
    return await answerRequest(this.parts, { id, user, request: requestId, answer });
  }

  /**
   * Yields a change whenever one of {@link requests} is opened or closed, until the signal aborts. To miss none, begin
   * to follow before you list the requests.
   */
  followRequests(
    id: string,
    { user, signal = NEVER }: { user: string; signal?: AbortSignal },
  ): AsyncGenerator<RequestChange, void, undefined> {
    return followRequests(this.parts, id, { user, signal });
  }
}
