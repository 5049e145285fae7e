import { afterEach, describe, expect, it, vi } from "vitest";
import { PromptInput } from "../../../src/cli/chat/terminal/prompt-input.js";
import { Window } from "../../../src/cli/chat/terminal/window.js";
import { abortable } from "../../../src/runtime/clock.js";

/** A window on a terminal that nobody sees. */
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
  it("a prompt that is given back to the input takes along the prompts that wait behind it, in their order", async () => {
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

  it("Ctrl-C cancels what the chat works on, and gives back the prompts that wait", async () => {
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

  it("a terminal that is gone cancels the work of that moment, and not the leaving after it", async () => {
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
