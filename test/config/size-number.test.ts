import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseCount, parsePort } from "../../src/config/values/number.js";
import { parseSize } from "../../src/config/values/size.js";
import { quote } from "../../src/errors.js";
import { refusalOf } from "./folder.js";

describe("parseSize", () => {
  it.each([
    ["1kb", 1024],
    ["512mb", 536_870_912],
    ["1gb", 1_073_741_824],
    ["1.5GB", 1_610_612_736],
    ["1024gb", 1_099_511_627_776],
  ])("parseSize reads %s", (text, bytes) => {
    expect(parseSize(text, { name: "recycle.maxMemory" })).toBe(bytes);
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
  ])("parseSize refuses %j", (text) => {
    const error = refusalOf(() => parseSize(text, { name: "recycle.maxMemory" }));
    expect(error).toMatchObject({ code: "FLEET_SIZE_INVALID", exit: 2 });
    expect(error.message).toContain(`recycle.maxMemory is ${quote(text)}. Allowed: a number with a unit (kb, mb, gb)`);
  });

  it("parseSize reads any whole number of units", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1024 }), fc.constantFrom("kb", "mb", "gb"), (amount, unit) => {
        const factor = 1024 ** (["kb", "mb", "gb"].indexOf(unit) + 1);
        expect(parseSize(`${amount}${unit}`, { name: "x" })).toBe(amount * factor);
      }),
    );
  });
});

describe("parsePort", () => {
  it.each([
    ["1", 1],
    ["4321", 4321],
    ["65535", 65_535],
  ])("parsePort reads %s", (text, port) => {
    expect(parsePort(text, { name: "--port" })).toBe(port);
  });

  it.each(["abc", "", "0", "-1", "65536", "4321.5", "1e4", " 4321", "4321 ", "0x10", "04321", "4321\n", "Infinity"])(
    "parsePort refuses %j",
    (text) => {
      const error = refusalOf(() => parsePort(text, { name: "--port" }));
      expect(error).toMatchObject({ code: "FLEET_PORT_INVALID", exit: 2 });
      expect(error.message).toBe(`--port is ${quote(text)}. Allowed: a whole number from 1 to 65535`);
    },
  );
});

describe("parseCount", () => {
  it("parseCount reads a count within its bounds and refuses one outside of them", () => {
    expect(parseCount("3", { name: "--count", min: 1, max: 10 })).toBe(3);
    const error = refusalOf(() => parseCount("0", { name: "--count", min: 1, max: 10 }));
    expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID", exit: 2 });
    expect(error.message).toBe('--count is "0". Allowed: a whole number from 1 to 10');
  });
});
