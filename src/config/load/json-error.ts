/**
 * The position at which a text stops being JSON. When `JSON.parse` has refused a text, we scan it ourselves, because
 * V8's error messages often lack the position and may quote a secret from the text.
 */
export interface JsonFault {
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
