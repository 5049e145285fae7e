import { describe, expect, it } from "vitest";
import { NEVER } from "../../../src/base/clock.js";
import { FleetError } from "../../../src/base/errors.js";
import { FleetConversations } from "../../../src/cli/chat/fleet.js";
import type { Fleet } from "../../../src/fleet/fleet.js";

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

async function opened() {
  const sessions = new DrainingSessions();
  const fleet = { sessions, config: { provider: null, session: { approve: "all" } } } as unknown as Fleet;
  const conversation = await new FleetConversations(fleet, "alice", {}).resume("one", "small", NEVER);
  sessions.isDraining = true;
  await expect(conversation.useModel("large", NEVER)).rejects.toMatchObject({ code: "FLEET_POOL_DRAINING" });
  return { sessions, conversation };
}

describe("a chat whose session could not be opened again with another model", () => {
  const ignore = () => undefined;
  const options = { signal: NEVER, onEvent: ignore, onWait: ignore, onLost: ignore, onFound: ignore };

  it("after a failed change of the model, the next prompt opens the session with its earlier model", async () => {
    const { sessions, conversation } = await opened();
    await expect(conversation.send("hello", options)).rejects.toMatchObject({ code: "FLEET_POOL_DRAINING" });
    sessions.isDraining = false;
    await conversation.send("hello", options);
    expect(await conversation.model(NEVER)).toBe("small");
    expect(sessions.calls).toEqual(["small", "large", "small", "small", "hello"]);
  });

  it("after a failed change of the model, the chat can leave the session without an error", async () => {
    const { conversation } = await opened();
    await conversation.leave();
  });
});

describe("a request of a chat to its server", () => {
  /** A conversation whose server answers each request for the model with the next of these answers. */
  async function asking(...answers: (Error | string)[]) {
    let openings = 0;
    const getCurrent = async () => {
      const answer = answers.shift();
      if (answer instanceof Error) throw answer;
      return { modelId: answer };
    };
    const sessions = {
      resume: async () => {
        openings++;
        return { sessionId: "one", rpc: { model: { getCurrent } } };
      },
      leave: async () => undefined,
    };
    const fleet = { sessions, config: { provider: null, session: { approve: "all" } } } as unknown as Fleet;
    const conversation = await new FleetConversations(fleet, "alice", {}).resume("one", undefined, NEVER);
    return { conversation, openings: () => openings };
  }
  const rpcError = (code: number, message: string) => Object.assign(new Error(message), { code });

  it("a chat reports an error response of its server, and does not open the session again", async () => {
    const { conversation, openings } = await asking(rpcError(-32_603, "The model service is down."), "small");
    await expect(conversation.model(NEVER)).rejects.toThrow("The model service is down.");
    expect(openings()).toBe(1);
  });

  it.each([
    ["the connection ended before the answer", rpcError(-32_097, "Pending response rejected")],
    ["the connection had ended before", rpcError(2, "Connection is disposed.")],
    ["the server had unloaded the session", rpcError(-32_603, "Session not found: one")],
  ])("a chat opens the session again and asks the server again if %s", async (_, error) => {
    const { conversation, openings } = await asking(error, "small");
    expect(await conversation.model(NEVER)).toBe("small");
    expect(openings()).toBe(2);
  });

  it("a chat does not open the session again after the user has cancelled the request", async () => {
    const { conversation, openings } = await asking("small");
    await expect(conversation.model(AbortSignal.abort(new Error("cancelled")))).rejects.toThrow("cancelled");
    expect(openings()).toBe(1);
  });
});
