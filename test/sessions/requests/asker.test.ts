import type { SessionEvent } from "@github/copilot-sdk";
import { expect, it } from "vitest";
import type { Config } from "../../../src/config/schema.js";
import { AgentRequests, Asker } from "../../../src/sessions/requests.js";
import { TestClock } from "../../fixtures/fleets/test-clock.js";

const config = { session: { approve: "ask" } } as Config;
const event = (type: string, data: object): SessionEvent => ({ type, data }) as unknown as SessionEvent;

it("when another client answers a question, Asker closes the question as answered and sends no answer itself", async () => {
  const requests = new AgentRequests({ answerMs: 60_000, clock: new TestClock(), isEnding: async () => false });
  const asker = new Asker(requests, "s", "alice");
  const { onUserInputRequest } = asker.handlersFor(config);
  const changes: unknown[] = [];
  using _ = asker.begin({ onRequest: ({ type, request }) => changes.push([type, request.outcome]) });
  const answers: unknown[] = [];
  for (const question of ["Which?", "Really?"])
    void Promise.resolve(onUserInputRequest?.({ question, allowFreeform: true }, { sessionId: "s" })).then((answer) =>
      answers.push(answer),
    );
  expect(requests.size).toBe(2);
  asker.saw(event("user_input.requested", { requestId: "r1", question: "Which?" }));
  asker.saw(event("user_input.requested", { requestId: "r2", question: "Really?" }));
  asker.saw(event("user_input.completed", { requestId: "r2", answer: "yes" }));
  asker.saw(event("user_input.completed", { requestId: "r2", answer: "yes" }));
  await new Promise(setImmediate);
  expect(requests.list("s", "alice").map(({ question, outcome }) => [question?.question, outcome])).toEqual([
    ["Which?", null],
    [undefined, "answered"],
  ]);
  expect(changes).toEqual([
    ["request.opened", null],
    ["request.opened", null],
    ["request.closed", "answered"],
  ]);
  expect(answers).toEqual([]);
});
