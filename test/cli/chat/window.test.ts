import { EventEmitter } from "node:events";
import { afterEach, describe, expect, it, vi } from "vitest";
import { abortable } from "../../../src/base/clock.js";
import { Window, Work } from "../../../src/cli/chat/window.js";
import type { Screen } from "../../../src/cli/run/screen.js";

/** A terminal that shows nothing. */
class FakeScreen extends EventEmitter {
  readonly size = { columns: 80, rows: 24 };
  draw(): void {
    // This terminal shows nothing.
  }
  [Symbol.dispose](): void {
    // There is nothing to restore.
  }
}

function testWindow() {
  const screen = new FakeScreen();
  const window = new Window([], new AbortController().signal, screen as unknown as Screen);
  const press = (name: string, text = "") => screen.emit("key", { text, name, raw: { name } });
  const paste = (text: string) => screen.emit("paste", text);
  const type = (prompt: string) => {
    paste(prompt);
    press("return");
  };
  return { window, screen, press, paste, type };
}

afterEach(() => {
  vi.restoreAllMocks();
});

describe("the window of a chat", () => {
  it("giveBack fills the input with the failed prompt, the waiting prompts and the unsent text", async () => {
    const { window: made, press, paste, type } = testWindow();
    using window = made;
    type("first");
    expect(await window.next()).toBe("first");
    type("second");
    type("third");
    paste("half");
    window.giveBack("first");
    press("return");
    expect(await window.next()).toBe("first\nsecond\nthird\nhalf");
  });

  it("Ctrl-C cancels the chat's current work, and returns the waiting prompts to the input", async () => {
    const { window: made, press, paste, type } = testWindow();
    using window = made;
    const work = window.during(
      new Work("Working"),
      "The command was cancelled.",
      async (signal) => await abortable(new Promise(() => undefined), signal),
    );
    type("second");
    press("ctrl-c");
    await expect(work).rejects.toThrow("The command was cancelled.");
    paste(" time");
    press("return");
    expect(await window.next()).toBe("second time");
  });

  it("a lost terminal cancels the chat's current work, but the chat can still leave its session", async () => {
    const { window: made, screen } = testWindow();
    using window = made;
    const work = window.during(
      new Work("Working"),
      "The command was cancelled.",
      async (signal) => await abortable(new Promise(() => undefined), signal),
    );
    screen.emit("gone");
    await expect(work).rejects.toThrow("The command was cancelled.");
    const leaving = await window.during(new Work("Working"), "The command was cancelled.", async (signal) => {
      screen.emit("gone");
      return signal.aborted;
    });
    expect(leaving).toBe(false);
    expect(await window.next()).toBeNull();
  });

  it("a key answers a question only after half a second without keys; earlier keys are typed into the prompt", async () => {
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => now);
    const { window: made, press } = testWindow();
    using window = made;
    const asked = window.during(new Work("Working"), "The turn was cancelled.", async () => {
      const choices = [{ key: "n", label: "no" }];
      const answers = [window.ask({ lines: [], choices }), window.ask({ lines: [], choices: null })];
      for (const key of "no, never") {
        now += 400;
        press(key, key);
      }
      now += 500;
      press("n", "n");
      const first = await answers[0];
      press("!", "!");
      now += 500;
      for (const key of "own") press(key, key);
      press("return");
      return [first, await answers[1]];
    });
    expect(await asked).toEqual(["n", "own"]);
    press("return");
    expect(await window.next()).toBe("no, never!");
  });

  it("the end of a turn ends its questions without an answer", async () => {
    const { window: made } = testWindow();
    using window = made;
    let answers: Promise<(string | null)[]> | undefined;
    await window.during(new Work("Working"), "The turn was cancelled.", async () => {
      answers = Promise.all([1, 2].map(async () => await window.ask({ lines: [], choices: null })));
    });
    expect(await answers).toEqual([null, null]);
  });
});
