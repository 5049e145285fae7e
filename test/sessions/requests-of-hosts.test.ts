import { expect, it } from "vitest";
import { followRequests } from "../../src/hosts/sessions/requests.js";
import { sessionNotFound } from "../../src/sessions/problems.js";
import { AgentRequests } from "../../src/sessions/requests.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";

type Context = Parameters<typeof followRequests>[0];

const QUESTION = { permission: null, question: { question: "Which?", choices: null, freeform: true } };

function following(signal: AbortSignal, find: () => Promise<unknown> = async () => undefined) {
  const requests = new AgentRequests({ answerMs: 60_000, clock: new TestClock(), isEnding: async () => false });
  const context = { finder: { find }, hosts: {}, requests } as unknown as Context;
  return { requests, changes: followRequests(context, "talk", { user: "alice", signal }) };
}

it("a follower of requests also gets the requests that open before it reads its first change", async () => {
  const { requests, changes } = following(new AbortController().signal);
  const mine = requests.open("talk", "alice", QUESTION).request;
  requests.open("talk", "bob", QUESTION);
  requests.open("other", "alice", QUESTION);
  const next = requests.open("talk", "alice", QUESTION).request;
  expect(await changes.next()).toEqual({ done: false, value: { type: "request.opened", request: mine } });
  expect(await changes.next()).toEqual({ done: false, value: { type: "request.opened", request: next } });
  await changes.return();
  expect(await changes.next()).toEqual({ done: true, value: undefined });
});

it("a follower of requests fails at its first change if the user may not use the session", async () => {
  const { changes } = following(new AbortController().signal, async () => {
    throw sessionNotFound("talk");
  });
  await expect(changes.next()).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
});
