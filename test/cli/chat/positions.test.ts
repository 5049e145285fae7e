import { describe, expect, it } from "vitest";
import { Positions } from "../../../src/cli/chat/terminal/positions.js";

describe("the terminal's answers about the cursor", () => {
  it("two cursor reports, together or apart, are removed from the keys, and the last gives the column", () => {
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

  it("a cursor report that arrives in two parts is removed from the keys around it", () => {
    for (const cut of [2, 3, 5, 6, 7]) {
      const positions = new Positions();
      positions.expect();
      const answer = "\x1b[24;80R";
      expect(positions.read(`x\x1b[A${answer.slice(0, cut)}`)).toEqual({ keys: "x\x1b[A", column: undefined });
      expect(positions.read(`${answer.slice(cut)}y`)).toEqual({ keys: "y", column: 79 });
    }
  });

  it("a key that looks like a cursor report passes if the chat has not asked for a report", () => {
    expect(new Positions().read("\x1b[1;2R\x1b[")).toEqual({ keys: "\x1b[1;2R\x1b[", column: undefined });
  });
});
