import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  ERRORS,
  type ErrorEntry,
  FleetError,
  fillIn,
  isCommand,
  isFleetError,
  option,
  quote,
  type Suggestion,
  systemCode,
} from "../src/base/errors.js";
import { RAW } from "./fixtures/commands/cli.js";
import { faultsOf } from "./fixtures/commands/typed-commands.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

function codesIn(text: string): string[] {
  return text.match(/\bFLEET_[A-Z_]+[A-Z]\b/g) ?? [];
}

const sources = readdirSync(join(ROOT, "src"), { recursive: true, encoding: "utf8" })
  .filter((name) => name.endsWith(".ts") && !name.startsWith("errors/"))
  // Comments may name a code that nobody throws.
  .map((name) => readFileSync(join(ROOT, "src", name), "utf8").replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, ""));
const start = readFileSync(join(ROOT, "bin", "run.js"), "utf8");
const used = new Set([...sources, start].flatMap(codesIn));

describe("the table of errors", () => {
  it("each error code has the form FLEET_<NOUN>_<STATE>, and an exit code from 1 to 8", () => {
    for (const [code, { exit }] of Object.entries(ERRORS)) {
      expect(code).toMatch(/^FLEET_[A-Z]+(_[A-Z]+)*$/);
      expect([1, 2, 3, 4, 5, 6, 7, 8], code).toContain(exit);
    }
  });

  it("the table of errors has exactly the codes that the source uses", () => {
    expect(used.size).toBeGreaterThan(25);
    // Exported constants, and variables in examples, whose names look like codes.
    const constants = new Set(["FLEET_VARIABLE", "FLEET_TOKEN"]);
    expect([...used].filter((code) => !(code in ERRORS) && !constants.has(code))).toEqual([]);
    expect(Object.keys(ERRORS).filter((code) => !used.has(code))).toEqual([]);
  });

  it("the table of errors has an HTTP status, sentences, causes and next steps for each code", () => {
    for (const [code, { httpStatus, title, data, causes, fixes, httpFix }] of Object.entries<ErrorEntry>(ERRORS)) {
      expect([401, 403, 404, 409, 412, 413, 422, 429, 500, 502, 503, 504], code).toContain(httpStatus);
      expect(title, code).toMatch(/^\S.*\.$/);
      expect(data, code).toMatch(/^[A-Z].*\.$/);
      expect(causes.length, code).toBeGreaterThan(0);
      expect(fixes.length, code).toBeGreaterThan(0);
      // A client of the HTTP API has no shell on the host.
      if (httpFix !== undefined) expect(httpFix, code).toMatch(/^(?!.*copilotfleet )[A-Z].*\.$/);
      for (const cause of causes) expect(cause, code).toMatch(/^\S.*\.$/);
    }
  });

  it("the table of errors advises only commands and flags that exist, or complete sentences", () => {
    const fixes = Object.entries<ErrorEntry>(ERRORS).flatMap(([code, entry]) =>
      entry.fixes.map((fix) => ({ code, fix })),
    );
    expect(fixes.filter(({ fix }) => isCommand(fix)).length).toBeGreaterThan(50);
    for (const { code, fix } of fixes) {
      expect(faultsOf(fix), `${code}: ${fix}`).toEqual([]);
      if (isCommand(fix)) continue;
      expect(fix, code).toMatch(/^[A-Z"].*[.?]$/);
      expect(fix, code).not.toMatch(/: (?:copilotfleet|chmod|kill|mv) /);
    }
  });

  it("faultsOf reports advice with an unknown command or flag, or without a required flag", () => {
    expect(faultsOf("copilotfleet pss")).toEqual(['there is no command "pss"']);
    expect(faultsOf("Then: copilotfleet gc --dry --ttl 1h")).toEqual(["gc has no flag --dry"]);
    expect(faultsOf("ls; copilotfleet token issue --ttl 30d # --nothing")).toEqual(["token issue needs --user"]);
    expect(faultsOf("copilotfleet COMMAND --help")).toEqual([]);
  });

  it("a FleetError names an option as the library does (ttl), and describe() as its caller asks (--ttl)", () => {
    const suggestions: Suggestion[] = [`Wait with ${option("wait", "5m")}.`];
    const error = new FleetError("FLEET_USAGE_INVALID", `${option("ttl")} is ${quote("x")}`, { suggestions });
    expect(error).toMatchObject({ message: 'ttl is "x"', suggestions: ['Wait with wait: "5m".'] });
    const described = error.describe((name, value) => `--${name}${value === "" ? "" : ` ${value}`}`);
    expect(described).toEqual({ message: '--ttl is "x"', suggestions: ["Wait with --wait 5m."] });
    // Simulate an error from another host. Its options stay marked, so that the host that asked chooses how to name
    // them.
    const { message, suggestions: marked } = error.describe(option);
    const passedOn = new FleetError(error.code, message, { suggestions: marked });
    expect(passedOn.describe((name) => name.toUpperCase())).toMatchObject({ message: 'TTL is "x"' });
    expect(passedOn.message).toBe(error.message);
  });

  it.each([
    ["copilotfleet ps", true],
    ["COPILOTFLEET_SERVE_LISTEN=127.0.0.1:0 copilotfleet serve", true],
    ["chmod go-w '/a folder'", true],
    ["COPILOTFLEET_PROVIDER_TYPE=echo tries everything without an account.", false],
    ["Try again in a moment.", false],
    ["Did you mean --user?", false],
    ["exported by another version", false],
  ])("isCommand(%j) is %j, because only a command starts with the name of a program", (suggestion, expected) => {
    expect(isCommand(suggestion)).toBe(expected);
  });

  it("fillIn replaces known placeholders in a command, and leaves sentences and other words alone", () => {
    const values = { USER: "alice", SESSION: "notes" };
    expect(fillIn("copilotfleet send SESSION TEXT --user USER", values)).toBe(
      "copilotfleet send notes TEXT --user alice",
    );
    expect(fillIn("copilotfleet stop SERVER", values)).toBe("copilotfleet stop SERVER");
    expect(fillIn("Ask the USER.", values)).toBe("Ask the USER.");
    expect(fillIn("export COPILOTFLEET_USER=USER", values)).toBe("export COPILOTFLEET_USER=alice");
  });

  it("a reworded FleetError keeps everything but its texts, and its options stay marked", () => {
    const error = new FleetError("FLEET_LIMIT_REACHED", `${option("wait")} is too short`, {
      cause: new Error("underneath"),
      limit: "sessions",
      retryAfterMs: 5,
      outcome: { deleted: ["a"] },
      suggestions: ["copilotfleet ps"],
    });
    const reworded = error.reworded(({ message }) => ({ message: `${message}.` }));
    const { code, cause, limit, retryAfterMs, outcome, suggestions, stack } = error;
    expect(reworded).toMatchObject({ code, cause, limit, retryAfterMs, outcome, suggestions, stack });
    expect(reworded.describe((name) => `--${name}`).message).toBe("--wait is too short.");
    expect(error.reworded(() => ({}), { deleted: [] })).toMatchObject({
      message: error.message,
      outcome: { deleted: [] },
    });
  });

  it("a FleetError does not treat quoted text as an option", () => {
    const error = new FleetError("FLEET_USAGE_INVALID", `${quote(option("wait", "5m"))} is not a user id`);
    expect(error.describe(() => "FORGED").message).not.toContain("FORGED");
  });

  it("a FleetError has the exit code of its error code, and keeps the cause", () => {
    const cause = new Error("underneath");
    const error = new FleetError("FLEET_SESSION_NOT_FOUND", "not there", { cause, suggestions: ["copilotfleet ps"] });
    expect(error).toMatchObject({ exit: 4, suggestions: ["copilotfleet ps"], cause, name: "FleetError" });
    expect(isFleetError(error)).toBe(true);
    expect(isFleetError(error, "FLEET_SESSION_NOT_FOUND")).toBe(true);
    expect(isFleetError(error, "FLEET_SESSION_BUSY")).toBe(false);
    expect(isFleetError(new Error("other"))).toBe(false);
    expect("cause" in new FleetError("FLEET_INTERNAL", "x")).toBe(false);
    expect(systemCode(Object.assign(new Error("x"), { code: "ENOENT" }))).toBe("ENOENT");
    expect(systemCode(Object.assign(new Error("x"), { code: 3 }))).toBeUndefined();
    expect(systemCode("ENOENT")).toBeUndefined();
  });
});

describe("quote", () => {
  it("quote escapes everything that a terminal or a log would interpret, and shortens long text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), (value) => {
        const quoted = quote(value);
        expect(quoted).toMatch(/^"[\s\S]*"$/);
        expect(quoted).not.toMatch(RAW);
        expect(quoted).not.toMatch(/[\n\t]/);
        // A quotation mark inside never ends the quoted text.
        expect(quoted.slice(1, -1).replace(/\\./gs, "")).not.toContain('"');
      }),
    );
    expect(quote("x".repeat(500)).length).toBeLessThan(90);
  });

  it.each([
    ["a\u001b[31mb", '"a\\u{1b}[31mb"'],
    ["a\u202eb\u200bc", '"a\\u{202e}b\\u{200b}c"'],
    ['say "hi"', '"say \\"hi\\""'],
    [12, '"12"'],
    [null, '"null"'],
    [undefined, '"undefined"'],
  ])("quote turns %j into %s", (value, quoted) => {
    expect(quote(value)).toBe(quoted);
  });
});
