import { PassThrough } from "node:stream";
import { setImmediate as nextRound } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Keyboard } from "../../../src/cli/chat/terminal/keyboard.js";

let names: string[];
let input: PassThrough;
let keyboard: Keyboard;

beforeEach(() => {
  names = [];
  input = Object.assign(new PassThrough(), { setRawMode: () => input });
  const output = new PassThrough().resume();
  const nothing = () => undefined;
  const onKey = ({ name }: { name: string }) => names.push(name);
  const listener = { onKey, onPaste: nothing, onPosition: nothing, onGone: nothing };
  keyboard = new Keyboard(input as never, output as never, listener);
});

afterEach(() => keyboard[Symbol.dispose]());

async function keysOf(text: string): Promise<string[]> {
  names.length = 0;
  input.write(text);
  await nextRound();
  return names;
}

describe("a newline that was typed outside raw mode", () => {
  it("a newline that was typed before the chat began counts as the Enter key", async () => {
    expect(await keysOf("a\n")).toEqual(["a", "return"]);
  });

  it("a newline that was typed while the chat was stopped counts as the Enter key", async () => {
    await nextRound();
    await nextRound();
    expect(await keysOf("a\n")).toEqual(["a", "enter"]);
    process.emit("SIGCONT");
    expect(await keysOf("a\n")).toEqual(["a", "return"]);
  });
});
