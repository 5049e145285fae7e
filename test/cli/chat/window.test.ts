import { afterEach, describe, expect, it, vi } from "vitest";
import { PromptInput } from "../../../src/cli/chat/terminal/prompt-input.js";
import { Window } from "../../../src/cli/chat/terminal/window.js";

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
});
