import { afterEach, describe, expect, it, vi } from "vitest";
import { abortable } from "../../../src/base/clock.js";
import { Window } from "../../../src/cli/chat/window.js";

/** A window on a fake terminal, which discards the output. */
function testWindow(): Window {
  Object.assign(process.stdin, { setRawMode: () => process.stdin });
  vi.spyOn(process.stdout, "write").mockReturnValue(true);
  return new Window([], new AbortController().signal);
}

function type(window: Window, prompt: string): void {
  window.onPaste(prompt);
  window.onKey("", { name: "return" });
}

afterEach(() => {
  vi.restoreAllMocks();
});

describe("the window of a chat", () => {
  it("giveBack fills the input with the failed prompt, the waiting prompts and the unsent text", async () => {
    using window = testWindow();
    type(window, "first");
    expect(await window.next()).toBe("first");
    type(window, "second");
    type(window, "third");
    window.onPaste("half");
    window.giveBack("first");
    window.onKey("", { name: "return" });
    expect(await window.next()).toBe("first\nsecond\nthird\nhalf");
  });

  it("Ctrl-C cancels the chat's current work, and returns the waiting prompts to the input", async () => {
    using window = testWindow();
    const part = { take: () => [], live: () => [] };
    const work = window.working(part, async (signal) => await abortable(new Promise(() => undefined), signal));
    type(window, "second");
    window.onKey("", { name: "c", ctrl: true });
    await expect(work).rejects.toThrow("The command was cancelled.");
    window.onPaste(" time");
    window.onKey("", { name: "return" });
    expect(await window.next()).toBe("second time");
  });

  it("a lost terminal cancels the chat's current work, but the chat can still leave its session", async () => {
    using window = testWindow();
    const part = { take: () => [], live: () => [] };
    const work = window.working(part, async (signal) => await abortable(new Promise(() => undefined), signal));
    window.onGone();
    await expect(work).rejects.toThrow("The command was cancelled.");
    const leaving = await window.working(part, async (signal) => {
      window.onGone();
      return signal.aborted;
    });
    expect(leaving).toBe(false);
    expect(await window.next()).toBeNull();
  });

  it("a key answers a question only after half a second without keys; earlier keys are typed into the prompt", async () => {
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => now);
    using window = testWindow();
    const asked = window.during({ take: () => [], live: () => [] }, async (turn) => {
      turn.begin();
      const choices = [{ key: "n", label: "no" }];
      const answers = [window.ask({ lines: [], choices }), window.ask({ lines: [], choices: null })];
      for (const key of "no, never") {
        now += 400;
        window.onKey(key, { name: key });
      }
      now += 500;
      window.onKey("n", { name: "n" });
      const first = await answers[0];
      window.onKey("!", {});
      now += 500;
      for (const key of "own") window.onKey(key, { name: key });
      window.onKey("", { name: "return" });
      return [first, await answers[1]];
    });
    expect(await asked).toEqual(["n", "own"]);
    window.onKey("", { name: "return" });
    expect(await window.next()).toBe("no, never!");
  });

  it("the end of a turn ends its questions without an answer", async () => {
    using window = testWindow();
    let answers: Promise<(string | null)[]> | undefined;
    await window.during({ take: () => [], live: () => [] }, async (turn) => {
      turn.begin();
      answers = Promise.all([1, 2].map(async () => await window.ask({ lines: [], choices: null })));
    });
    expect(await answers).toEqual([null, null]);
  });
});
