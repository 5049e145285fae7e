import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import {
  newSessionId,
  serverIdOf,
  titleOf,
  validateSessionId,
  validateTitle,
  validateUser,
} from "../../src/base/ids.js";
import { RAW } from "../fixtures/commands/cli.js";

/** Returns the value if it is accepted, or the error's message if it is refused. Any other error fails the test. */
function outcome(validate: (value: string) => string, value: string): { taken?: string; refused?: string } {
  try {
    return { taken: validate(value) };
  } catch (error) {
    if (!isFleetError(error) || error.exit !== 2) throw error;
    return { refused: error.message };
  }
}

describe("a user id", () => {
  it.each([
    "a",
    "alice",
    "mary-jane",
    "a.b_c@d+e-f",
    "\u017elu\u0165ou\u010dk\u00fd",
    "\u7528\u6237",
    "\u0645\u0633\u062a\u062e\u062f\u0645",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "42",
    "@bot",
    "+1",
    "_",
    "a".repeat(128),
  ])("%s is a valid user id", (user) => {
    expect(validateUser(user)).toBe(user.normalize("NFC"));
  });

  it("validateUser accepts only ids that are safe in a path, a shell and a log", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 140 }), (value) => {
        const { taken, refused } = outcome(validateUser, value);
        if (taken === undefined) {
          expect(refused).toContain("(at most 128 bytes)");
          expect(refused).not.toMatch(RAW);
          return;
        }
        expect(taken).not.toMatch(RAW);
        expect(taken).not.toMatch(/[\s/\\'"`$&|;<>(){}*?[\]~#!%^=:,]/);
        expect(taken).not.toMatch(/^[.-]/);
        expect(Buffer.byteLength(taken)).toBeLessThanOrEqual(128);
        expect(validateUser(taken)).toBe(taken);
      }),
      { numRuns: 500 },
    );
  });

  it("any string of allowed characters is a user id unless it begins with a dot or a hyphen", () => {
    const unit = fc.constantFrom(..."abcXYZ0189._@+-\u00e9\u4e2d\u0434");
    fc.assert(
      fc.property(fc.string({ unit, minLength: 1, maxLength: 40 }), (value) => {
        expect(outcome(validateUser, value).taken !== undefined).toBe(!/^[.-]/.test(value));
      }),
    );
  });

  it("validateUser gives the same user id for two Unicode spellings", () => {
    expect(validateUser("zoe\u0308")).toBe(validateUser("zo\u00eb"));
  });
});

describe("a server's id", () => {
  it("a server's id is safe as a folder name on any disk, and differs for every user", () => {
    const unit = fc.constantFrom(..."abAB01._@+-\u00e9\u00c9\u4e2d");
    const user = fc.string({ unit, minLength: 1, maxLength: 60 });
    fc.assert(
      fc.property(user, user, (one, two) => {
        expect(serverIdOf(one)).toMatch(/^[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{12}$/);
        expect(serverIdOf(one).length).toBeLessThanOrEqual(40);
        expect(serverIdOf(one) === serverIdOf(two)).toBe(one === two);
      }),
    );
    expect(serverIdOf("Alice")).not.toBe(serverIdOf("alice"));
    expect(serverIdOf("alice")).toBe("alice-2bd806c97f0e");
  });
});

describe("a session id", () => {
  it("validateSessionId accepts only ids that are plain names", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 140 }), (value) => {
        const { taken, refused } = outcome(validateSessionId, value);
        if (taken === undefined) expect(refused).not.toMatch(RAW);
        else expect(taken).toMatch(/^(?!\.{1,2}$)[A-Za-z0-9._][A-Za-z0-9._-]{0,127}$/);
      }),
      { numRuns: 500 },
    );
  });

  it.each([
    ["constructor", "a reserved word"],
    ["__proto__", "a reserved word"],
    ["..", "stands for a folder"],
  ])("the error for the session id %j states the reason, and what an id may be", (id, why) => {
    const { refused } = outcome(validateSessionId, id);
    expect(refused).toContain(why);
    expect(refused).toContain("Allowed: an id of ");
  });

  it.each([
    ["a b", "it contains a space"],
    ["a\tb", 'it contains "\\u{9}"'],
    ["a/b", 'it contains "/"'],
  ])("the error for %j names the character that an id cannot have", (id, why) => {
    expect(outcome(validateSessionId, id).refused).toContain(why);
    expect(outcome(validateUser, id).refused).toContain(why);
  });

  it("newSessionId makes a valid session id, and a different one at each call", () => {
    const id = newSessionId();
    expect(validateSessionId(id)).toBe(id);
    // The runtime does not accept a dot.
    expect(id).toMatch(/^[a-z0-9-]{36}$/);
    expect(newSessionId()).not.toBe(id);
  });

  it.each([
    ["\n\n  Fix the\tbuild \r\nand then rest", "Fix the build"],
    ["a\u2028b", "a"],
    ["\u001b[31mred \u202egnp", "\\u{1b}[31mred \\u{202e}gnp"],
    ["می\u200cخواهم", "می\u200cخواهم"],
    [" \n\u200d\n", null],
    ["", null],
  ])("the title of a session with the prompt %j is %j", (prompt, title) => {
    expect(titleOf(prompt)).toBe(title);
  });

  it("the title of any prompt is a title that a user may give, with at most 80 characters", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 300 }), (prompt) => {
        const title = titleOf(prompt);
        expect(title === null || validateTitle(title, "--title") === title).toBe(true);
      }),
    );
    expect(titleOf("😀".repeat(100))).toBe(`${"😀".repeat(39)}…`);
  });

  it.each([
    ["", "which is empty"],
    ["  ", "which contains only spaces"],
    ["a\nb", 'which contains "\\u{a}"'],
    ["a\u202eb", 'which contains "\\u{202e}"'],
    ["x".repeat(81), "which has 81 characters"],
  ])("the error for the title %j names the flag and the fault", (title, fault) => {
    expect(() => validateTitle(title, "--title")).toThrow(`${fault}. Allowed: one line of at most 80 characters`);
  });
});
