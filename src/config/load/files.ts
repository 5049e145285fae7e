import { closeSync, constants, fstatSync, openSync, readFileSync, type Stats, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { FleetError, type Suggestion, systemCode } from "../../base/errors.js";
import { printable, shellQuote } from "../../base/values/text.js";
import { unusableFile } from "../problem.js";
import { isExposed } from "../secret.js";
import type { Layer } from "./layers.js";

export const PROJECT_FILE = ".copilotfleet.json";
const LARGEST_BYTES = 1024 * 1024;

export function findProjectFile(folder: string): string | null {
  for (let at = folder; ; at = dirname(at)) {
    const path = join(at, PROJECT_FILE);
    if (exists(path)) return path;
    if (dirname(at) === at) return null;
  }
}

/**
 * Reads a configuration file; undefined if it does not exist. Refuses a file that another user could have written,
 * because the file names programs to run, and anybody could put such a file into a shared folder above the working
 * folder, such as /tmp. This function is synchronous, because every command begins by waiting for it.
 */
export function readConfigFile(path: string, uid: number | undefined): { text: string; content: unknown } | undefined {
  if (!exists(path)) return undefined;
  const text = readText(path, uid).replace(/^\uFEFF/, "");
  if (text.trim() === "") {
    throw unusableFile(path, "is empty. Allowed: a JSON object", [
      `Write {} into ${printable(path)}, or remove the file.`,
    ]);
  }
  try {
    return { text, content: JSON.parse(text) as unknown };
  } catch {
    // Do not keep the parser's error as the cause, because it quotes the text around the fault.
    const { line, column, reason } = locateJsonFault(text);
    throw unusableFile(path, `is not JSON at line ${line}, column ${column}: ${reason}. Allowed: plain JSON`, [
      `Correct line ${line} of ${printable(path)}.`,
    ]);
  }
}

function exists(path: string): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch (error) {
    // The file does not exist for us if we may not search its folder, or if its path cannot exist.
    if (["EACCES", "ENOTDIR", "ENAMETOOLONG", "ELOOP"].includes(systemCode(error) ?? "")) return false;
    throw error;
  }
}

function readText(path: string, uid: number | undefined): string {
  let handle: number;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    handle = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const reason = `cannot be read: ${systemCode(error) ?? "unknown reason"}`;
    throw unusableFile(path, reason, [`chmod u+r ${shellQuote(printable(path))}`], error);
  }
  try {
    checkFile(path, fstatSync(handle), uid);
    return readFileSync(handle, "utf8");
  } finally {
    closeSync(handle);
  }
}

function checkFile(path: string, stats: Stats, uid: number | undefined): void {
  if (stats.isDirectory()) {
    throw unusableFile(path, "is a folder, not a regular file. Allowed: a file that contains JSON", [
      `Give the path of a file, such as ${printable(join(path, PROJECT_FILE))}.`,
    ]);
  }
  if (!stats.isFile()) {
    // Do not suggest moving a device or the like away, because the system may need it there.
    throw unusableFile(path, "is not a regular file. Allowed: a file that contains JSON", [
      "copilotfleet config path # lists the configuration files that are read",
    ]);
  }
  if (stats.size > LARGEST_BYTES) {
    throw unusableFile(path, `has ${stats.size} bytes. Allowed: at most ${LARGEST_BYTES}`, [
      `Shorten ${printable(path)}.`,
    ]);
  }
  if (uid !== undefined && stats.uid !== uid && stats.uid !== 0) {
    throw unusableFile(path, `belongs to another user (uid ${stats.uid}). Allowed: a file of your own or of root`, [
      "Copy the file, if you trust it, and use the copy.",
    ]);
  }
  if ((stats.mode & 0o002) !== 0) {
    throw unusableFile(path, "can be written by everybody. Allowed: a file that only its owner and group can write", [
      `chmod o-w ${shellQuote(printable(path))}`,
    ]);
  }
}

/**
 * All keys that a project's `.copilotfleet.json` may set without the user's trust, and why each of them is harmless. A
 * stranger may have written the file, because it may be part of a cloned repository. So all other keys are guarded: the
 * file may set them only if the user trusts it (`fleet/trust.ts`). A key belongs here only if none of its values runs
 * or sends anything, deletes anything, weakens a protection or a limit, opens an address, or stops a server.
 */
const UNGUARDED = new Map<string, { values: "all" | readonly unknown[]; because: string }>([
  ["session.model", { values: "all", because: "It chooses among the models of the user's own account or provider." }],
  ["session.approve", { values: ["none"], because: "It is the strictest value." }],
  ["session.host", { values: ["none"], because: "It is the strictest value." }],
  ["provider.type", { values: ["echo"], because: "The echo model is built in and sends nothing." }],
  ["insecure", { values: [false], because: "It is the strictest value." }],
]);

/** The values of a key that need no trust. */
export function valuesWithoutTrust(name: string): "all" | readonly unknown[] {
  return UNGUARDED.get(name)?.values ?? [];
}

/** The keys of a project's file that need the user's trust. */
export function guardedKeys(layer: Layer): string[] {
  const isGuarded = (name: string, value: unknown) => {
    const harmless = valuesWithoutTrust(name);
    return harmless !== "all" && !harmless.includes(value);
  };
  return [...layer].filter(([name, { value }]) => isGuarded(name, value)).map(([name]) => name);
}

/**
 * The position at which a text stops being JSON. When `JSON.parse` has refused a text, we scan it ourselves, because
 * V8's error messages often lack the position and may quote a secret from the text.
 */
interface JsonFault {
  line: number;
  column: number;
  reason: string;
}

// Matches blanks and then a punctuation character, a string, or a complete number or literal.
const TOKEN =
  /[ \t\r\n]*(?:([{}[\],:])|("(?:[ !#-[\]-\u{10FFFF}]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.+-]))/uy;

type Expected = "value" | "value or ]" | "name" | "name or }" | ":" | ", or end";

export function locateJsonFault(text: string): JsonFault {
  const open: string[] = [];
  let expected: Expected = "value";
  for (let at = 0; ; at = TOKEN.lastIndex) {
    const start = skipBlanks(text, at);
    if (expected === ", or end" && open.length === 0) return fault(text, start, expected, open);
    TOKEN.lastIndex = at;
    const match: RegExpExecArray | null = TOKEN.exec(text);
    const next: Expected | null =
      match === null ? null : step(expected, open, match[1] ?? (match[2] === undefined ? "literal" : "string"));
    if (next === null) return fault(text, start, expected, open);
    expected = next;
  }
}

/** Returns what must follow `token`, or null if `token` itself is not allowed here. */
function step(expected: Expected, open: string[], token: string): Expected | null {
  const wantsValue = expected === "value" || expected === "value or ]";
  if (token === "string" && (expected === "name" || expected === "name or }")) return ":";
  if (token === ":" && expected === ":") return "value";
  if ((token === "string" || token === "literal") && wantsValue) return ", or end";
  if (token === "{" && wantsValue) {
    open.push("}");
    return "name or }";
  }
  if (token === "[" && wantsValue) {
    open.push("]");
    return "value or ]";
  }
  const mayClose = expected === ", or end" || expected === (token === "]" ? "value or ]" : "name or }");
  if (token === open.at(-1) && mayClose) {
    open.pop();
    return ", or end";
  }
  if (token === "," && expected === ", or end") return open.at(-1) === "}" ? "name" : "value";
  return null;
}

function skipBlanks(text: string, from: number): number {
  let at = from;
  while (" \t\r\n".includes(text.charAt(at)) && at < text.length) at++;
  return at;
}

function fault(text: string, at: number, expected: Expected, open: string[]): JsonFault {
  const before = text.slice(0, at).split("\n");
  return { line: before.length, column: (before.at(-1) ?? "").length + 1, reason: explain(text, at, expected, open) };
}

function explain(text: string, at: number, expected: Expected, open: string[]): string {
  if (at >= text.length) return "it ends too early";
  if (/^\/[/*]/.test(text.slice(at, at + 2))) return "comments are not JSON";
  const before = text.slice(0, at).trimEnd();
  if (/[}\]]/.test(text.charAt(at)) && before.endsWith(","))
    return "a comma must not be the last thing in a list or object";
  if (expected === ", or end")
    return open.length === 0 ? "nothing may follow the end" : `expected a comma or "${open.at(-1)}"`;
  if (expected.startsWith("name")) return "expected a name in double quotes";
  return expected === ":" ? "expected a colon" : "expected a value";
}

const LARGEST_VALUE_BYTES = 64 * 1024;

/**
 * Reads the value of a key from the file that a variable names. This function is synchronous, because every command
 * waits for it.
 */
export function readValueFile(path: string, variable: string): string {
  let handle: number;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    handle = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw unusable(path, variable, `cannot be read (${systemCode(error) ?? "unknown reason"})`, "readable", error);
  }
  try {
    const stats = fstatSync(handle);
    if (!stats.isFile() || stats.size > LARGEST_VALUE_BYTES)
      throw unusable(path, variable, "cannot hold a value", `regular, and of at most ${LARGEST_VALUE_BYTES} bytes`);
    if (isExposed(stats)) {
      const mode = (stats.mode & 0o777).toString(8).padStart(3, "0");
      throw unusable(path, variable, `has mode ${mode}, which lets others use it`, "for its owner alone");
    }
    // Remove the line break that `echo` writes at the end of a file.
    return readFileSync(handle, "utf8").replace(/\r?\n$/, "");
  } finally {
    closeSync(handle);
  }
}

function unusable(path: string, variable: string, problem: string, allowed: string, cause?: unknown): FleetError {
  const name = printable(path);
  const suggestion: Suggestion = problem.includes("mode")
    ? `chmod 600 ${shellQuote(name)}`
    : `ls -l ${shellQuote(name)}`;
  const message = `The file ${name}, which ${variable} names, ${problem}. Allowed: a file that is ${allowed}`;
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions: [suggestion], cause });
}
