import { describe, expect, it } from "vitest";
import { Chat, type ChatParts } from "../../../src/cli/chat/chat.js";
import type { Conversation, Conversations } from "../../../src/cli/chat/conversation/conversation.js";
import { MarkdownStream } from "../../../src/cli/chat/markdown/stream.js";
import type { Window } from "../../../src/cli/chat/terminal/window.js";
import { FleetError } from "../../../src/errors.js";

/** Runs a chat in a new session in which the user types these prompts, without a terminal. */
async function chatOf(prompts: string[], conversation: Partial<Conversation>, signal = new AbortController().signal) {
  const said: string[] = [];
  const deleted: string[] = [];
  const left = [...prompts];
  const session: Conversation = {
    id: "session",
    send: async () => undefined,
    server: async () => null,
    model: async () => null,
    models: async () => [],
    useModel: async () => undefined,
    past: async () => [],
    leave: async () => undefined,
    ...conversation,
  };
  const conversations: Conversations = {
    place: "here",
    user: "alice",
    isEcho: false,
    create: async () => session,
    resume: async () => session,
    list: async () => [],
    delete: async (id) => void deleted.push(id),
    takeWarnings: () => [],
    close: async () => undefined,
  };
  const note = (text: string) => void said.push(text);
  const window = {
    columns: 80,
    status: "",
    print: () => undefined,
    say: note,
    sayCommand: note,
    changed: () => undefined,
    giveBack: (prompt: string) => note(`given back: ${prompt}`),
    next: async () => left.shift() ?? null,
    during: async (_: unknown, run: (signal: AbortSignal) => Promise<unknown>) => await run(signal),
  } as unknown as Window;
  const parts: ChatParts = {
    window,
    conversations,
    history: { add: () => undefined } as unknown as ChatParts["history"],
    markdown: await MarkdownStream.create(),
    signal,
    resumeWith: (id) => `chat ${id}`,
  };
  await Chat.run(parts, null, undefined);
  return { said, deleted };
}

describe("the loop of a chat", () => {
  it("a chat reports an error of the SDK in a command or a turn, and goes on with the next prompt", async () => {
    const sent: string[] = [];
    const { said } = await chatOf(["/model", "one", "two"], {
      models: async () => {
        throw new Error("the provider lists no models");
      },
      send: async (prompt) => {
        sent.push(prompt);
        if (prompt === "one") throw new TypeError("the connection was disposed");
      },
    });
    expect(sent).toEqual(["one", "two"]);
    expect(said).toContain("the provider lists no models");
    expect(said).toContain("the connection was disposed");
  });

  it("a chat ends without a report when its signal aborts a turn", async () => {
    const ending = new AbortController();
    const reason = new Error("interrupted");
    const send = async () => {
      ending.abort(reason);
      throw reason;
    };
    const { said } = await chatOf(["one", "two"], { send }, ending.signal);
    expect(said).not.toContain("interrupted");
  });

  it("a chat deletes its new session if the user sent no prompt, and keeps it if a sent prompt may not have arrived", async () => {
    expect((await chatOf([], {})).deleted).toEqual(["session"]);
    const lost = new FleetError("FLEET_SERVER_LOST", "Nobody knows whether the prompt arrived.");
    const { said, deleted } = await chatOf(["one"], { send: () => Promise.reject(lost) });
    expect(said).toContain("given back: one");
    expect(deleted).toEqual([]);
  });
});
