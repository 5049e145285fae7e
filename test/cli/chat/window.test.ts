import { afterEach, describe, expect, it, vi } from "vitest";
import { PromptInput } from "../../../src/cli/chat/terminal/prompt-input.js";
import { Window } from "../../../src/cli/chat/terminal/window.js";
import { abortable } from "../../../src/runtime/clock.js";

/** A window on a fake terminal, which discards the output. */
function testWindow(): Window {
  Object.assign(process.stdin, { setRawMode: () => process.stdin });
  vi.spyOn(process.stdout, "write").mockReturnValue(true);
  return new Window(new PromptInput([], []), new AbortController().signal);
}

function type(window: Window, prompt: string): void {
  window.onPaste(prompt);
  window.onKey({ text: "", name: "return" });
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
    window.onKey({ text: "", name: "return" });
    expect(await window.next()).toBe("first\nsecond\nthird\nhalf");
  });

  it("Ctrl-C cancels the chat's current work, and returns the waiting prompts to the input", async () => {
    using window = testWindow();
    const part = { take: () => [], live: () => [] };
    const work = window.working(part, async (signal) => await abortable(new Promise(() => undefined), signal));
    type(window, "second");
    window.onKey({ text: "", name: "ctrl-c" });
    await expect(work).rejects.toThrow("The command was cancelled.");
    window.onPaste(" time");
    window.onKey({ text: "", name: "return" });
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
});
