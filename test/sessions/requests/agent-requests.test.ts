import { describe, expect, it } from "vitest";
import type { ServerState } from "../../../src/model/server.js";
import { AgentRequests, type Asked, isEnding, type RequestChange } from "../../../src/sessions/requests.js";
import { openStore } from "../../../src/store/file/file-store.js";
import { TestClock } from "../../fixtures/fleets/test-clock.js";
import { serverRecord, sessionRecord } from "../../fixtures/store/store-records.js";
import { temporaryRoot } from "../../fixtures/store/store-root.js";

const PERMISSION: Asked = { permission: { kind: "shell" }, question: null };
const CHOICE: Asked = { permission: null, question: { question: "Which?", choices: ["red", "blue"], freeform: false } };

const requestsOn = (clock = new TestClock(), isEnding = async () => await Promise.resolve(false)) =>
  new AgentRequests({ answerMs: 60_000, clock, isEnding });

describe("the requests of the agent", () => {
  it("a question that is not freeform accepts only its choices", () => {
    const requests = requestsOn();
    const { id } = requests.open("s", "alice", CHOICE).request;
    expect(() => requests.answer("s", "alice", id, { answer: "green" })).toThrow('Allowed: "red", "blue"');
    expect(requests.answer("s", "alice", id, { answer: "blue" }).outcome).toBe("answered");
  });

  it("a request expires only once: after its time limit, or at once if its signal has already aborted", async () => {
    const clock = new TestClock();
    const requests = requestsOn(clock);
    const changes: RequestChange[] = [];
    requests.on((change) => changes.push(change));
    const waiting = requests.open("s", "alice", PERMISSION);
    await clock.advance(60_000, 0);
    expect(await waiting.verdict).toEqual({ outcome: "expired" });
    const stop = AbortSignal.abort();
    expect(await requests.open("s", "alice", PERMISSION, stop).verdict).toEqual({ outcome: "expired" });
    waiting.close({ outcome: "approved" });
    expect(changes.map(({ type, request }) => [type, request.outcome])).toEqual([
      ["request.opened", null],
      ["request.closed", "expired"],
      ["request.opened", null],
      ["request.closed", "expired"],
    ]);
    expect(requests.size).toBe(0);
  });

  it("a request expires when the session's server is about to end", async () => {
    const clock = new TestClock();
    let isEnding = false;
    const requests = requestsOn(clock, async () => await Promise.resolve(isEnding));
    const waiting = requests.open("s", "alice", PERMISSION);
    await clock.advance(1_000, 0);
    expect(requests.size).toBe(1);
    isEnding = true;
    await clock.advance(1_000, 0);
    expect(await waiting.verdict).toEqual({ outcome: "expired" });
  });

  it("a request at a server that drains stays open if its user is suspended, because an answer would let the turn go on", async () => {
    const store = openStore("file", await temporaryRoot());
    await store.sessions.create(sessionRecord("s"));
    const serverIs = async (state: ServerState) =>
      await store.registry.update(({ servers }) => void Object.assign(servers, { s1: serverRecord("s1", { state }) }));
    await serverIs("ready");
    const isOver = async () => await isEnding({ store, directory: { own: null } }, { session: "s", user: "alice" });
    expect(await isOver()).toBe(false);
    await serverIs("draining");
    expect(await isOver()).toBe(true);
    await store.limits.set("alice", (own) => ({
      ...own,
      suspended: { since: "2026-01-01T00:00:00.000Z", reason: null },
    }));
    expect(await isOver()).toBe(false);
  });

  it("AgentRequests remembers only the last 1,000 requests that have ended", () => {
    const requests = requestsOn();
    for (let count = 0; count < 1_100; count++) requests.open("s", "alice", PERMISSION).close({ outcome: "denied" });
    expect(requests.list("s", "alice")).toHaveLength(1_000);
  });
});
