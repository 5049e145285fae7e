import { describe, expect, it, vi } from "vitest";
import { Approvals } from "../../../src/cli/chat/answers/approvals.js";
import { Questions } from "../../../src/cli/chat/answers/questions.js";
import type { PermissionRequest } from "../../../src/cli/chat/answers/request.js";
import { ChoiceDialog, type Dialog, DialogQueue, TextDialog } from "../../../src/cli/chat/terminal/dialogs.js";
import { OwnTurn } from "../../../src/cli/chat/terminal/own-turn.js";
import { eventually } from "../../fixtures/eventually.js";

const COLUMNS = 60;
const HEIGHT = 22;

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
  readonly queue = new DialogQueue();
  readonly ask = async (dialog: Dialog) => {
    this.asked.push(shown(dialog).join("\n"));
    return await this.queue.ask(dialog);
  };

  /** Presses this key as soon as a question is on the screen. */
  async answer(key: string): Promise<void> {
    const dialog = await eventually("a question", () => this.queue.first ?? undefined);
    await eventually("the end of the pause", () => !shown(dialog).at(-1)?.includes("stop typing"));
    dialog.key({ text: key, name: key });
    await dialog.answered;
  }
}

function shown(dialog: Dialog, columns = COLUMNS, height = HEIGHT): string[] {
  dialog.take(columns, height);
  return [...dialog.view(columns, height).rows];
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
    expect(question).toMatch(/… all of it is above\ny {2}yes, once\na .*\n? *n {2}no/s);
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
      ask: async (dialog: Dialog) => {
        shownLines.push(...shown(dialog));
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

describe("the questions of a chat", () => {
  const choices = [
    { key: "y", label: "yes" },
    { key: "n", label: "no" },
  ];

  it("questions are shown one after another, and dismiss() ends all that are still unanswered", async () => {
    const queue = new DialogQueue();
    let now = 0;
    const [first, second, third] = ["one", "two", "three"].map((text) => new TextDialog([{ text }], () => now));
    if (first === undefined || second === undefined || third === undefined) throw new Error("no question");
    const answers = [first, second, third].map(async (dialog) => await queue.ask(dialog));
    expect(queue.first).toBe(first);
    first.take(COLUMNS, HEIGHT);
    now += 500;
    first.paste("1");
    first.key({ text: "", name: "return" });
    expect(await answers[0]).toBe("1");
    expect(queue.first).toBe(second);
    queue.dismiss();
    expect(await Promise.all(answers)).toEqual(["1", null, null]);
    expect(queue.first).toBeNull();
  });

  it("a key answers a question only after half a second without keys; earlier keys are typed into the prompt", () => {
    let now = 0;
    const dialog = new ChoiceDialog([{ text: "Run it?" }], choices, () => now);
    const press = (text: string) => dialog.key({ text, name: text });
    expect(shown(dialog).at(-1)).toContain("stop typing");
    for (const key of "maybe n") {
      now += 400;
      expect(press(key), key).toBe(false);
    }
    expect(dialog.paste()).toBe(false);
    now += 500;
    expect(shown(dialog).at(-1)).toBe("n  no");
    expect(press("y")).toBe(true);
  });

  it("a question too long for the terminal is printed in full once, and its beginning and choices stay visible", () => {
    const lines = Array.from({ length: 9 }, (_, index) => ({ text: `line ${index}` }));
    const dialog = new ChoiceDialog(lines, choices);
    const printed = dialog.take(COLUMNS, 8);
    expect(printed).toEqual(["", ...lines.map(({ text }) => text), "y  yes", "n  no"]);
    expect(dialog.take(COLUMNS, 8)).toEqual([]);
    const { rows } = dialog.view(COLUMNS, 8);
    expect(rows.slice(0, -1)).toEqual([
      "line 0",
      "line 1",
      "line 2",
      "line 3",
      "… all of it is above",
      "y  yes",
      "n  no",
    ]);
    expect(rows).toHaveLength(8);
  });

  it("a question that expects text shows its beginning and the answer on a small terminal", () => {
    const lines = Array.from({ length: 20 }, (_, index) => ({ text: `line ${index}` }));
    let now = 0;
    const dialog = new TextDialog(lines, () => now);
    expect(dialog.take(COLUMNS, 6)).toHaveLength(21);
    expect(dialog.view(COLUMNS, 6).rows.at(-1)).toContain("stop typing");
    now += 500;
    const { rows } = dialog.view(COLUMNS, 6);
    expect(rows[0]).toBe("line 0");
    expect(rows.slice(-2)).toEqual(["… all of it is above", "? "]);
    expect(rows).toHaveLength(6);
  });

  it("keys that are typed for the next prompt do not answer a question that expects text", () => {
    let now = 0;
    const dialog = new TextDialog([{ text: "Which database do you want to delete?" }], () => now);
    const press = (text: string, name = text) => dialog.key({ text, name });
    shown(dialog);
    for (const key of "prod") {
      now += 400;
      expect(press(key), key).toBe(false);
    }
    expect(dialog.paste("prod")).toBe(false);
    expect(press("", "return")).toBe(false);
    now += 500;
    // The keys of an answer may follow one another quickly.
    for (const key of "test") expect(press(key), key).toBe(true);
    expect(shown(dialog).at(-1)).toBe("? test");
    press("", "return");
    return expect(dialog.answered).resolves.toBe("test");
  });

  it("a question shows its full text even on a tiny terminal", () => {
    const lines = ["Run this command?", "rm -rf /"].map((text) => ({ text }));
    for (const height of [1, 2, 3, 4, 5]) {
      const dialog = new ChoiceDialog(lines, choices);
      const seen = [...dialog.take(COLUMNS, height), ...dialog.view(COLUMNS, height).rows.slice(-height)];
      expect(seen, `${height} rows`).toContain("rm -rf /");
    }
  });

  it("a question too long for the terminal is printed in full again after the user has cleared the screen", () => {
    const dialog = new ChoiceDialog([{ text: "line\n".repeat(30) }], choices);
    const printed = dialog.take(COLUMNS, 8);
    expect(dialog.take(COLUMNS, 8)).toEqual([]);
    dialog.clear();
    expect(dialog.take(COLUMNS, 8)).toEqual(printed);
  });
});
