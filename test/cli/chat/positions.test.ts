import { describe, expect, it } from "vitest";
import { Positions } from "../../../src/cli/chat/terminal/positions.js";

describe("the terminal's answers about the cursor", () => {
  it("two answers leave no text behind, whether they come together or one by one, and only the last one counts", () => {
    for (const chunks of [["a\x1b[24;80Rb\x1b[24;40Rc"], ["a\x1b[24;80Rb", "\x1b[24;40Rc"]]) {
      const positions = new Positions();
      positions.expect();
      positions.expect();
      const read = chunks.map((chunk) => positions.read(chunk));
      expect(read.map(({ keys }) => keys).join("")).toBe("abc");
      expect(read.at(-1)?.column).toBe(39);
      expect(read.slice(0, -1).map(({ column }) => column)).toEqual(read.slice(0, -1).map(() => undefined));
    }
  });

  it("an answer that is cut in two leaves no text behind, and other keys come through", () => {
    for (const cut of [2, 3, 5, 6, 7]) {
      const positions = new Positions();
      positions.expect();
      const answer = "\x1b[24;80R";
      expect(positions.read(`x\x1b[A${answer.slice(0, cut)}`)).toEqual({ keys: "x\x1b[A", column: undefined });
      expect(positions.read(`${answer.slice(cut)}y`)).toEqual({ keys: "y", column: 79 });
    }
  });

  it("a key that looks like an answer comes through if the chat has not asked", () => {
    expect(new Positions().read("\x1b[1;2R\x1b[")).toEqual({ keys: "\x1b[1;2R\x1b[", column: undefined });
  });
});
