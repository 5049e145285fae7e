import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { locateJsonFault } from "../../src/config/load/json.js";

describe("locateJsonFault", () => {
  it.each([
    ["", 1, 1, "it ends too early"],
    ["{", 1, 2, "it ends too early"],
    ['{\n  "a": 1,\n}', 3, 1, "a comma must not be the last thing in a list or object"],
    ['{\n  // why\n  "a": 1\n}', 2, 3, "comments are not JSON"],
    ['{"a": 1 /* why */}', 1, 9, "comments are not JSON"],
    ["{a: 1}", 1, 2, "expected a name in double quotes"],
    ["{'a': 1}", 1, 2, "expected a name in double quotes"],
    ['{"a" 1}', 1, 6, "expected a colon"],
    ['{"a": }', 1, 7, "expected a value"],
    ['{"a": undefined}', 1, 7, "expected a value"],
    ['{"a": 1 "b": 2}', 1, 9, "expected a comma"],
    ['{"a": [1}', 1, 9, "expected a comma"],
    ["[1,]", 1, 4, "a comma must not be the last thing in a list or object"],
    ['{"a": 010}', 1, 8, "expected a comma"],
    ['{"a": "x\ny"}', 1, 7, "expected a double quote at the end of the text"],
    ["{} {}", 1, 4, "nothing may follow the end"],
  ])("locateJsonFault finds the line and column of the fault in %j, and the reason", (text, line, column, reason) => {
    expect(locateJsonFault(text)).toEqual({ line, column, reason });
  });

  it("locateJsonFault finds a fault at or before the place where valid JSON was cut off", () => {
    fc.assert(
      fc.property(fc.json(), fc.nat(), (json, cut) => {
        const text = `[${json}]`;
        const broken = text.slice(0, cut % text.length);
        expect(locateJsonFault(broken).column).toBeLessThanOrEqual(broken.length + 1);
      }),
    );
  });
});
