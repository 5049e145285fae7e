import type { CopilotSession, SessionEvent } from "@github/copilot-sdk";
import { expect, it } from "vitest";
import { runTurn } from "../../src/runtime/client/turn.js";
import { eventually } from "../fixtures/eventually.js";
import type { TestClock } from "../fixtures/fleets/test-clock.js";

/** A session whose events come in an order that we cannot produce with the real runtime. */
class FakeSession {
  readonly sessionId = "s";
  readonly rpc = { metadata: { activity: async () => ({ hasActiveWork: this.isAtWork }) } };
  isAtWork = true;
  #listener: (event: SessionEvent) => void = () => undefined;

  on(listener: (event: SessionEvent) => void) {
    this.#listener = listener;
    return () => undefined;
  }

  /** How many times the turn was aborted. */
  aborts = 0;

  async send(): Promise<string> {
    return "mine";
  }

  async abort(): Promise<void> {
    this.aborts++;
  }

  emit(type: string, data: object = {}): void {
    this.#listener({ type, data } as SessionEvent);
  }
}

/** Resolves when `send` has been answered. */
async function answered(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

function run(session: FakeSession, onDelta?: (text: string) => void, clock?: TestClock, signal?: AbortSignal) {
  const options = { ...(onDelta === undefined ? {} : { onDelta }), ...(signal === undefined ? {} : { signal }) };
  return runTurn(session as unknown as CopilotSession, new Promise(() => undefined), { prompt: "x" }, options, clock);
}

it("runTurn takes a user.message without a message id for the beginning of its own prompt", async () => {
  const session = new FakeSession();
  const turn = run(session);
  session.emit("user.message", { content: "x" });
  session.emit("assistant.message", { content: "own" });
  session.emit("session.idle");
  expect((await turn).text).toBe("own");
});

it("runTurn returns an empty text for a prompt that got no answer, not the answer to another client's prompt", async () => {
  const session = new FakeSession();
  const turn = run(session);
  session.emit("assistant.message", { content: "another's" });
  session.emit("user.message", { messageId: "mine" });
  session.emit("session.idle");
  expect((await turn).text).toBe("");
});

it("runTurn aborts again when its prompt begins after the abort, because the server drops an early abort", async () => {
  const session = new FakeSession();
  const stop = new AbortController();
  const turn = run(session, undefined, undefined, stop.signal);
  await answered();
  stop.abort(new Error("changed my mind"));
  await eventually("the first abort", () => session.aborts === 1);
  session.emit("user.message", { messageId: "mine" });
  await eventually("the second abort", () => session.aborts === 2);
  session.emit("session.idle");
  await expect(turn).rejects.toThrow("changed my mind");
});

it("runTurn sends only one abort for a prompt that has begun, because the next turn may be another client's", async () => {
  const session = new FakeSession();
  const stop = new AbortController();
  const turn = run(session, undefined, undefined, stop.signal);
  await answered();
  session.emit("user.message", { messageId: "mine" });
  stop.abort(new Error("changed my mind"));
  await eventually("the abort", () => session.aborts === 1);
  session.emit("session.idle");
  await expect(turn).rejects.toThrow("changed my mind");
  expect(session.aborts).toBe(1);
});
