import type { CopilotSession } from "@github/copilot-sdk";
import { describe, expect, it } from "vitest";
import { NEVER } from "../../../src/base/clock.js";
import { FleetError } from "../../../src/base/errors.js";
import { Chat, type ChatParts } from "../../../src/cli/chat/chat.js";
import { MarkdownStream } from "../../../src/cli/chat/markdown.js";
import type { Backend } from "../../../src/cli/chat/session.js";
import { Cancelled, type Window } from "../../../src/cli/chat/window.js";

interface Server {
  send?: (prompt: string) => Promise<void>;
  models?: () => Promise<string[]>;
  open?: (id: string | null, model: string | undefined) => void;
}

/** Runs a chat in a new session in which the user types these prompts, without a terminal. */
async function chatOf(prompts: string[], server: Server, signal = new AbortController().signal) {
  const said: string[] = [];
  const deleted: string[] = [];
  const left = [...prompts];
  const { send = async () => undefined, models = async () => [], open } = server;
  const session = {
    sessionId: "session",
    rpc: {
      model: { getCurrent: async () => ({}), list: async () => ({ list: (await models()).map((id) => ({ id })) }) },
    },
    getEvents: async () => [],
  } as unknown as CopilotSession;
  const backend = {
    place: "here",
    user: "alice",
    isEcho: false,
    open: async (id: string | null, model: string | undefined) => {
      open?.(id, model);
      return { session, closed: new Promise(() => undefined) };
    },
    send: async (_: unknown, prompt: string) => await send(prompt),
    leave: async () => undefined,
    view: async () => null,
    list: async () => [],
    delete: async (id: string) => void deleted.push(id),
  } as unknown as Backend;
  const note = (text: string) => void said.push(text);
  const window = {
    columns: 80,
    status: "",
    print: () => undefined,
    say: note,
    sayCommand: note,
    changed: () => undefined,
    giveBack: (prompt = "the prompts that wait") => note(`given back: ${prompt}`),
    next: async () => left.shift() ?? null,
    during: async (_work: unknown, _cancelled: string, run: (signal: AbortSignal) => Promise<unknown>) =>
      await run(NEVER),
  } as unknown as Window;
  const parts: ChatParts = {
    window,
    questions: { turn: null },
    backend,
    fleet: { takeWarnings: () => [] },
    history: { add: () => undefined },
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

  it("a chat ends without an error message when its signal aborts a turn", async () => {
    const ending = new AbortController();
    const reason = new Error("interrupted");
    const send = async () => {
      ending.abort(reason);
      throw reason;
    };
    const { said } = await chatOf(["one", "two"], { send }, ending.signal);
    expect(said).not.toContain("interrupted");
  });

  it("a chat deletes a new session without prompts, but keeps one in which a prompt may have arrived", async () => {
    expect((await chatOf([], {})).deleted).toEqual(["session"]);
    const lost = new FleetError("FLEET_SERVER_LOST", "Nobody knows whether the prompt arrived.");
    const { said, deleted } = await chatOf(["one"], { send: () => Promise.reject(lost) });
    expect(said).toContain("given back: one");
    expect(deleted).toEqual([]);
  });

  it("a failed chat command puts the waiting prompts back into the input instead of sending them", async () => {
    const open = (id: string | null) => {
      if (id !== null) throw new FleetError("FLEET_SESSION_NOT_FOUND", "There is no such session.");
    };
    for (const command of ["/resume other", "/nwe", "/model huge"]) {
      const models = async () => ["large", "small"];
      const { said } = await chatOf([command], { models, open });
      expect(said).toContain("given back: the prompts that wait");
    }
  });

  it("a chat exits with 130, as after SIGINT, if the user cancels the creation of its first session", async () => {
    const open = () => {
      throw new Cancelled("The command was cancelled.");
    };
    await expect(chatOf([], { open })).rejects.toMatchObject({ exitCode: 130 });
  });
});

describe("the command /model of a chat", () => {
  const withModels = async (wanted: string, server: Server) => {
    const used: string[] = [];
    const open = (id: string | null, model: string | undefined) => {
      server.open?.(id, model);
      if (id !== null && model !== undefined) used.push(model);
    };
    const { said } = await chatOf([`/model ${wanted}`], { ...server, open });
    return { said: said.join("\n"), used };
  };

  it("/model refuses a model that the provider does not offer, and suggests one that it offers", async () => {
    const offered = Array.from({ length: 20 }, (_, index) => `model-${index}`);
    const { said, used } = await withModels("modl-1", { models: async () => offered });
    expect(used).toEqual([]);
    expect(said).toContain(
      'The provider does not offer the model "modl-1". Did you mean model-1? /model lists what it offers.',
    );
    expect((await withModels("model-19", { models: async () => offered })).used).toEqual(["model-19"]);
  });

  it("/model accepts any model if the provider lists none, and shows the error if the server refuses it", async () => {
    const fails = () => Promise.reject(new Error("no list"));
    for (const models of [async () => [], fails]) {
      expect((await withModels("any", { models })).used).toEqual(["any"]);
      const open = (id: string | null) => {
        if (id !== null) throw new Error("The model is not supported.");
      };
      const { said } = await withModels("any", { models, open });
      expect(said).toContain("The model is not supported.");
      expect(said).not.toContain("The model is any");
    }
  });
});
