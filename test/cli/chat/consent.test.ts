import { stripVTControlCharacters } from "node:util";
import { describe, expect, it, vi } from "vitest";
import { OwnTurn, type PermissionRequest, Questions } from "../../../src/cli/chat/answers.js";
import type { Question } from "../../../src/cli/chat/window.js";
import { eventually } from "../../fixtures/eventually.js";

function begun(): OwnTurn {
  const turn = new OwnTurn();
  turn.hasBegun = true;
  return turn;
}

function questionsOf(window: WindowDouble): Questions {
  const questions = new Questions(window);
  questions.turn = window.turn;
  return questions;
}

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
    expect(await questionsOf(window).onPermissionRequest(shell("ls"), SESSION)).toEqual({ kind: "no-result" });
    expect(window.asked).toEqual([]);
  });

  it("a permission request that arrives before this chat's turn has begun is left to the other clients", async () => {
    const window = new WindowDouble();
    window.turn = new OwnTurn();
    expect(await questionsOf(window).onPermissionRequest(shell("ls"), SESSION)).toEqual({ kind: "no-result" });
    expect(window.asked).toEqual([]);
  });

  it("a permission request that cannot be shown gets no decision, and the next request is shown", async () => {
    const window = new WindowDouble();
    const { onPermissionRequest: handler } = questionsOf(window);
    const broken = { kind: "read" } as unknown as PermissionRequest;
    expect(await handler(broken, SESSION)).toEqual({ kind: "user-not-available" });
    const next = handler(shell("ls"), SESSION);
    await window.answer("y");
    expect(await next).toEqual({ kind: "approve-once" });
  });

  it("an approval for the whole session also answers a waiting request for the same command", async () => {
    const window = new WindowDouble();
    const { onPermissionRequest: handler } = questionsOf(window);
    const both = [handler(shell("ls"), SESSION), handler(shell("ls", "", "call_2"), SESSION)];
    await window.answer("a");
    expect(await Promise.all(both)).toEqual([{ kind: "approve-once" }, { kind: "approve-once" }]);
    expect(window.asked).toHaveLength(1);
  });

  it('"yes, once" also answers a second request about the same call, but not a later call with its id', async () => {
    const window = new WindowDouble();
    const questions = questionsOf(window);
    const handler = questions.onPermissionRequest;
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
    questions.turn?.decided.delete("call_2"); // another call has ended
    expect(await push()).toEqual({ kind: "approve-once" });
    expect(window.asked).toHaveLength(1);
    questions.turn?.decided.delete("call_1"); // the call has ended
    await answered(push()); // a later call of the same turn
    questions.turn = begun();
    await answered(push()); // the next turn
    await answered(handler(shell("git push"), { ...SESSION, sessionId: "two" }) as ReturnType<typeof push>);
    expect(window.asked).toHaveLength(4);
  });

  it("a long reason from the model does not push the question and the command off the screen", async () => {
    const window = new WindowDouble();
    const request = questionsOf(window).onPermissionRequest(
      shell("rm -rf x", "Run this command? ls ".repeat(100)),
      SESSION,
    );
    const [question = ""] = await eventually("the question", () => window.asked.length > 0 && window.asked);
    expect(question.split("\n").slice(0, 2)).toEqual(["Run this command?", "rm -rf x"]);
    expect(question.match(/ls/g)?.length).toBeLessThan(10);
    expect(question).toMatch(/…\ny {2}yes, once\na .*\nn {2}no/s);
    await window.answer("n");
    await request;
  });
});

describe("a question of the agent", () => {
  it("a question that arrives outside of this chat's turns is left to the other clients", async () => {
    for (const turn of [null, new OwnTurn()]) {
      const window = new WindowDouble();
      window.turn = turn;
      const answer = questionsOf(window).onUserInputRequest({ question: "Which colour?" }, SESSION);
      const nothing = new Promise((resolve) => setImmediate(resolve, "no answer"));
      expect(await Promise.race([answer, nothing])).toBe("no answer");
      expect(window.asked).toEqual([]);
    }
  });
});
