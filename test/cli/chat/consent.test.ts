import { stripVTControlCharacters } from "node:util";
import { describe, expect, it, vi } from "vitest";
import { Approvals, type PermissionRequest, Questions } from "../../../src/cli/chat/answers.js";
import { OwnTurn, type Question } from "../../../src/cli/chat/window.js";
import { eventually } from "../../fixtures/eventually.js";

function begun(): OwnTurn {
  const turn = new OwnTurn();
  turn.begin();
  return turn;
}

type Form = NonNullable<Parameters<Questions["onElicitation"]>[0]["requestedSchema"]>;

/** Replaces the chat's window: queues the questions of the chat, and needs no terminal. */
class WindowDouble {
  turn: OwnTurn | null = begun();
  readonly asked: string[] = [];
  readonly #queue: ((answer: string) => void)[] = [];
  readonly ask = async (question: Question) => {
    this.asked.push(shown(question).join("\n"));
    return await new Promise<string | null>((resolve) => this.#queue.push(resolve));
  };

  /** Presses this key as soon as a question is on the screen. */
  async answer(key: string): Promise<void> {
    const answer = await eventually("a question", () => this.#queue.shift());
    answer(key);
  }
}

function shown({ lines, choices }: Question): string[] {
  return [...lines.map(stripVTControlCharacters), ...(choices ?? []).map(({ key, label }) => `${key}  ${label}`)];
}

const shell = (command: string, intention = "", toolCallId = "call_1"): PermissionRequest => ({
  kind: "shell",
  toolCallId,
  fullCommandText: command,
  intention,
  commands: [{ identifier: command, readOnly: false }],
  canOfferSessionApproval: true,
  hasWriteFileRedirection: false,
  possiblePaths: [],
  possibleUrls: [],
});
const SESSION = { sessionId: "one", managedSettingsEnabled: false };

describe("a permission request", () => {
  it("a permission request that arrives between two turns of this chat is left to the other clients", async () => {
    const window = new WindowDouble();
    window.turn = null;
    expect(await new Approvals(window).handler(shell("ls"), SESSION)).toEqual({ kind: "no-result" });
    expect(window.asked).toEqual([]);
  });

  it("a permission request that arrives before this chat's turn has begun is left to the other clients", async () => {
    const window = new WindowDouble();
    const turn = new OwnTurn();
    window.turn = turn;
    const answer = new Approvals(window).handler(shell("ls"), SESSION);
    turn.begin();
    expect(await answer).toEqual({ kind: "no-result" });
    expect(window.asked).toEqual([]);
  });

  it("a permission request is shown if it arrives before the chat finds its turn in the history", async () => {
    const window = new WindowDouble();
    const turn = new OwnTurn();
    window.turn = turn;
    const answer = new Approvals(window).handler(shell("ls"), SESSION);
    turn.find();
    await window.answer("y");
    expect(await answer).toEqual({ kind: "approve-once" });
  });

  it("a permission request that cannot be shown gets no decision, and the next request is shown", async () => {
    const window = new WindowDouble();
    const { handler } = new Approvals(window);
    const broken = { kind: "shell", fullCommandText: "ls" } as unknown as PermissionRequest;
    expect(await handler(broken, SESSION)).toEqual({ kind: "user-not-available" });
    const next = handler(shell("ls"), SESSION);
    await window.answer("y");
    expect(await next).toEqual({ kind: "approve-once" });
  });

  it("an approval for the whole session also answers a waiting request for the same command", async () => {
    const window = new WindowDouble();
    const { handler } = new Approvals(window);
    const both = [handler(shell("ls"), SESSION), handler(shell("ls", "", "call_2"), SESSION)];
    await window.answer("a");
    expect(await Promise.all(both)).toEqual([{ kind: "approve-once" }, { kind: "approve-once" }]);
    expect(window.asked).toHaveLength(1);
  });

  it('"yes, once" also answers a second request about the same call, but not a later call with its id', async () => {
    const window = new WindowDouble();
    const { handler } = new Approvals(window);
    const push = async () => await handler(shell("git push"), SESSION);
    const answered = async (request: ReturnType<typeof push>) => {
      await window.answer("y");
      return await request;
    };
    await answered(push());
    // On a busy machine, the runtime may take long until it asks again.
    const later = vi.spyOn(performance, "now").mockReturnValue(performance.now() + 60_000);
    expect(await push()).toEqual({ kind: "approve-once" });
    later.mockRestore();
    expect(window.asked).toHaveLength(1);
    await answered(push()); // the call has had its two answers, so this is another call
    window.turn?.endCall("call_1");
    await answered(push()); // a later call of the same turn
    window.turn = begun();
    await answered(push()); // the next turn
    await answered(handler(shell("git push"), { ...SESSION, sessionId: "two" }) as ReturnType<typeof push>);
    expect(window.asked).toHaveLength(5);
  });

  it("a long reason from the model does not push the question and the command off the screen", async () => {
    const window = new WindowDouble();
    const request = new Approvals(window).handler(shell("rm -rf x", "Run this command? ls ".repeat(100)), SESSION);
    const [question = ""] = await eventually("the question", () => window.asked.length > 0 && window.asked);
    expect(question.split("\n").slice(0, 2)).toEqual(["Run this command?", "rm -rf x"]);
    expect(question.match(/ls/g)?.length).toBeLessThan(10);
    expect(question).toMatch(/…\ny {2}yes, once\na .*\nn {2}no/s);
    await window.answer("n");
    await request;
  });
});

describe("a form of the agent", () => {
  it.each([
    ["y", "accept"],
    ["n", "decline"],
  ])("a form without fields is shown, and the key %s answers it with %s", async (key, action) => {
    for (const requestedSchema of [undefined, { type: "object" as const, properties: {} }]) {
      const window = new WindowDouble();
      const answer = new Questions(window).onElicitation({
        sessionId: "one",
        message: "Delete the database?",
        ...(requestedSchema === undefined ? {} : { requestedSchema }),
      });
      await window.answer(key);
      expect(await answer).toEqual({ action });
      expect(window.asked).toEqual([expect.stringContaining("Delete the database?")]);
    }
  });

  it("a form that arrives between two turns of this chat is left to the other clients", async () => {
    const window = new WindowDouble();
    window.turn = null;
    const answer = new Questions(window).onElicitation({ sessionId: "one", message: "Delete the database?" });
    const nothing = new Promise((resolve) => setImmediate(resolve, "no answer"));
    expect(await Promise.race([answer, nothing])).toBe("no answer");
    expect(window.asked).toEqual([]);
  });
});

describe("the fields of a form", () => {
  /** Types these answers into the fields of a form, one after the other. */
  async function fill(properties: Form["properties"], answers: string[]) {
    const left = [...answers];
    const shownLines: string[] = [];
    const window = {
      turn: begun(),
      ask: async (question: Question) => {
        shownLines.push(...shown(question));
        return left.shift() ?? null;
      },
    };
    const requestedSchema: Form = { type: "object", properties, required: Object.keys(properties) };
    const answer = await new Questions(window).onElicitation({
      sessionId: "one",
      message: "Fill in.",
      requestedSchema,
    });
    return { answer, shownLines };
  }

  it("an empty answer to a number field does not count as 0", async () => {
    const { answer } = await fill({ count: { type: "number" } }, ["", " ", "7"]);
    expect(answer).toEqual({ action: "accept", content: { count: 7 } });
  });

  it("a field with a default shows the value that an empty answer sends", async () => {
    const colour = { type: "string" as const, enum: ["r", "b"], enumNames: ["red", "blue"], default: "b" };
    const { answer, shownLines } = await fill({ colour }, [""]);
    expect(answer).toEqual({ action: "accept", content: { colour: "b" } });
    expect(shownLines).toContain("An empty answer means: blue");
  });
});

describe("a question of the agent", () => {
  it("a question that arrives outside of this chat's turns is left to the other clients", async () => {
    for (const turn of [null, new OwnTurn()]) {
      const window = new WindowDouble();
      window.turn = turn;
      const answer = new Questions(window).onUserInput({ question: "Which colour?" }, SESSION);
      turn?.begin();
      const nothing = new Promise((resolve) => setImmediate(resolve, "no answer"));
      expect(await Promise.race([answer, nothing])).toBe("no answer");
      expect(window.asked).toEqual([]);
    }
  });
});
