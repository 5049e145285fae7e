import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { lineOfKey } from "../../src/config/load/json.js";

const TEXT = `{
  "$schema": "./{\\"session\\": {\\"ttl\\": 1}}",
  "session": {
    "ttl": "24h", "tools": [
      "custom:*",
      "builtin:view"
    ],
    "infinite": { "enabled":
      true }
  },
  "lists": [{ "a": 1 }, [
    2], { "a":
    3 }],
  "lock.ttl": 1,
  "lock": {
    "ttl": 1,
    "ttl": 2
  }
}`;

describe("lineOfKey", () => {
  it.each([
    ["$schema", 2],
    ["session", 3],
    ["session.ttl", 4],
    ["session.tools", 4],
    ["session.tools[0]", 5],
    ["session.tools[1]", 6],
    ["session.infinite.enabled", 8],
    ["lists[0].a", 11],
    ["lists[1]", 11],
    ["lists[1][0]", 12],
    ["lists[2].a", 12],
    ["lock", 15],
    ["ttl", undefined],
    ["session.tools[2]", undefined],
    ["", undefined],
  ])("for the key %j, lineOfKey returns line %s", (name, line) => {
    expect(lineOfKey(TEXT, name)).toBe(line);
  });

  it("if a key occurs twice, lineOfKey returns the line of the second one, whose value counts", () => {
    expect(lineOfKey(TEXT, "lock.ttl")).toBe(17);
  });

  it("lineOfKey finds each key of any object that is written with one key on each line", () => {
    const name = fc.string({ minLength: 1 }).filter((text) => !/[.[\]]/.test(text) && text !== "__proto__");
    fc.assert(
      fc.property(fc.dictionary(name, fc.jsonValue(), { maxKeys: 5 }), (object) => {
        const keys = Object.keys(object);
        const text = `{\n${keys.map((key) => `${JSON.stringify(key)}: ${JSON.stringify(object[key])}`).join(",\n")}\n}`;
        for (const [index, key] of keys.entries()) expect(lineOfKey(text, key)).toBe(index + 2);
      }),
    );
  });
});
