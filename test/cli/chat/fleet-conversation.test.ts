import { describe, expect, it } from "vitest";
import { FleetConversations } from "../../../src/cli/chat/conversation/fleet.js";
import { FleetError } from "../../../src/errors.js";
import type { Fleet } from "../../../src/fleet/fleet.js";

/** The sessions of a fleet that refuses to open any while it drains. It knows which session is open, as a fleet does. */
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
  const conversation = await new FleetConversations(fleet, "alice", {}).resume("one", "small");
  sessions.isDraining = true;
  await expect(conversation.useModel("large")).rejects.toMatchObject({ code: "FLEET_POOL_DRAINING" });
  return { sessions, conversation };
}

describe("a session of a chat that could not be opened again with another model", () => {
  const ignore = () => undefined;
  const options = { signal: new AbortController().signal, onEvent: ignore, onWait: ignore, onLost: ignore };

  it("after a failed change of the model, prompts open the session with its earlier model", async () => {
    const { sessions, conversation } = await opened();
    await expect(conversation.send("hello", options)).rejects.toMatchObject({ code: "FLEET_POOL_DRAINING" });
    sessions.isDraining = false;
    await conversation.send("hello", options);
    expect(await conversation.model()).toBe("small");
    expect(sessions.calls).toEqual(["small", "large", "small", "small", "hello"]);
  });

  it("after a failed change of the model, the chat can leave the session without an error", async () => {
    const { conversation } = await opened();
    await conversation.leave();
  });
});
