import { describe, expect, it } from "vitest";
import { NEVER } from "../../../src/base/clock.js";
import { FleetError } from "../../../src/base/errors.js";
import { type Answers, ChatSession, FleetBackend } from "../../../src/cli/chat/session.js";
import type { Fleet } from "../../../src/fleet/fleet.js";

/** Opens the session "one" with the model "small" in a fleet with these methods of `fleet.sessions`. */
async function opened(sessions: object): Promise<ChatSession> {
  const fleet = { sessions, config: { provider: null, session: { approve: "all" } } } as unknown as Fleet;
  return await ChatSession.open(new FleetBackend(fleet, "alice", {} as Answers), "one", "small", NEVER);
}

/** Replaces `fleet.sessions`. Rejects `resume` during a drain, and `send` and `leave` if no session is open. */
class DrainingSessions {
  isDraining = false;
  /** The calls so far, in order: the model of each `resume`, and the prompt of each `send`. */
  readonly calls: (string | undefined)[] = [];
  #isOpen = false;

  readonly resume = async (_id: string, { model }: { model?: string }) => {
    this.calls.push(model);
    if (this.isDraining) throw new FleetError("FLEET_POOL_DRAINING", "The pool drains.");
    this.#isOpen = true;
    return { sessionId: "one", rpc: { model: { getCurrent: async () => ({ modelId: "small" }) } } };
  };

  readonly leave = async () => {
    this.#assertOpen();
    this.#isOpen = false;
  };

  readonly send = async (_session: unknown, prompt: string) => {
    this.#assertOpen();
    this.calls.push(prompt);
  };

  #assertOpen(): void {
    if (!this.#isOpen) throw new FleetError("FLEET_USAGE_INVALID", "The session was not opened.");
  }
}

describe("a chat whose session could not be opened again with another model", () => {
  const options = { signal: NEVER, onEvent: () => undefined, onWait: () => undefined };
  const drained = async () => {
    const sessions = new DrainingSessions();
    const session = await opened(sessions);
    sessions.isDraining = true;
    await expect(session.useModel("large", NEVER)).rejects.toMatchObject({ code: "FLEET_POOL_DRAINING" });
    return { sessions, session };
  };

  it("after a failed change of the model, the next prompt opens the session with its earlier model", async () => {
    const { sessions, session } = await drained();
    await expect(session.send("hello", options)).rejects.toMatchObject({ code: "FLEET_POOL_DRAINING" });
    sessions.isDraining = false;
    await session.send("hello", options);
    expect(await session.model(NEVER)).toBe("small");
    expect(sessions.calls).toEqual(["small", "large", "small", "small", "hello"]);
  });

  it("after a failed change of the model, the chat can leave the session without an error", async () => {
    const { session } = await drained();
    await session.leave();
  });
});

describe("a request of a chat to its server", () => {
  /** A session whose server answers each request for the model with the next of these answers. */
  async function asking(...answers: (Error | string)[]) {
    let openings = 0;
    const getCurrent = async () => {
      const answer = answers.shift();
      if (answer instanceof Error) throw answer;
      return { modelId: answer };
    };
    const resume = async () => {
      openings++;
      return { sessionId: "one", rpc: { model: { getCurrent } } };
    };
    return { session: await opened({ resume, leave: async () => undefined }), openings: () => openings };
  }
  const rpcError = (code: number, message: string) => Object.assign(new Error(message), { code });

  it("a chat reports an error response of its server if it comes again after the session was opened again", async () => {
    const down = rpcError(-32_603, "The model service is down.");
    const { session } = await asking(down, down, "small");
    await expect(session.model(NEVER)).rejects.toThrow("The model service is down.");
  });

  it.each([
    ["the connection ended before the answer", rpcError(-32_097, "Pending response rejected")],
    ["the connection had ended before", rpcError(2, "Connection is disposed.")],
    ["the server had unloaded the session", rpcError(-32_603, "Session not found: one")],
  ])("a chat opens the session again and asks the server again if %s", async (_, error) => {
    const { session, openings } = await asking(error, "small");
    expect(await session.model(NEVER)).toBe("small");
    expect(openings()).toBe(2);
  });

  it("a chat does not open the session again after the user has cancelled the request", async () => {
    const { session, openings } = await asking("small");
    await expect(session.model(AbortSignal.abort(new Error("cancelled")))).rejects.toThrow("cancelled");
    expect(openings()).toBe(1);
  });
});
