import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readSize } from "../../src/base/values/measures.js";
import { readNumber } from "../../src/config/load/environment.js";

describe("readSize", () => {
  it.each([
    ["1kb", 1024],
    ["512mb", 536_870_912],
    ["1gb", 1_073_741_824],
    ["1.5GB", 1_610_612_736],
    ["1024gb", 1_099_511_627_776],
  ])("readSize accepts the size %s", (text, bytes) => {
    expect(readSize(text)).toBe(bytes);
  });

  it.each([
    "",
    "0",
    "0kb",
    "1",
    "-1gb",
    "1 gb",
    " 1gb",
    "1gb\n",
    "1b",
    "1tb",
    "1e3mb",
    "NaN",
    "Infinity",
    "1025gb",
    "0.0001kb",
    "1gib",
  ])("readSize refuses the text %j", (text) => {
    expect(readSize(text)).toBeNull();
  });

  it("readSize accepts any whole number of kb, mb or gb", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1024 }), fc.constantFrom("kb", "mb", "gb"), (amount, unit) => {
        const factor = 1024 ** (["kb", "mb", "gb"].indexOf(unit) + 1);
        expect(readSize(`${amount}${unit}`)).toBe(amount * factor);
      }),
    );
  });
});

describe("readNumber", () => {
  it.each([
    ["0", 0],
    ["-1", -1],
    ["4321", 4321],
    ["0.75", 0.75],
  ])("readNumber accepts the number %s", (text, number) => {
    expect(readNumber(text)).toBe(number);
  });

  it.each(["abc", "", "1e4", " 4321", "4321 ", "0x10", "04321", "4321\n", "Infinity", "NaN", "1.", ".5"])(
    "readNumber refuses the text %j",
    (text) => {
      expect(readNumber(text)).toBeNull();
    },
  );
});
