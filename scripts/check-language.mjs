/**
 * Checks the prose of the project: comments, documents and the names of tests. It finds sentence openings and words
 * that make a sentence hard to read, and prints each with its place and advice. CONTRIBUTING.md has the rules behind
 * it.
 *
 * Run: node scripts/check-language.mjs [file or folder...]
 */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import ts from "typescript";

const THING =
  "server|runtime|record|history|file|folder|store|registry|door|fleet|host|test|log|message|event|list|table|" +
  "kernel|library|command|process|supervisor|SDK|client|socket|answer|response|request|error|code|name|line|lease|" +
  "session|turn|model|this|that|which|it";

/** Each rule has a pattern, which matches a bad phrase in a sentence, and the advice to print. */
const RULES = [
  [/^(What|Who|Whoever|Of|One that|Left is|Meant is)\b(?!.*\?$)/i, "start the sentence with its subject"],
  [/\banew\b/i, 'write "again"'],
  [/\bmeanwhile\b/i, "name the time, such as “during the turn before it”"],
  [/(?<!\b(?:not|no|never|nothing|nobody|none|without|n't|cannot)\b.*)\byet\b/i, 'write "still"'],
  [/\bgoes(?=[.,;:)]|$| with (?:it|them|that|this)\b| too\b| as well\b| first\b)/i, 'write "is deleted" or "ends"'],
  [
    /(?<!\bthere )\b(?:is|are|was|were) no\b(?! (?:longer|more|less|fewer|other|better|worse|later|earlier|larger|smaller|older|newer|slower|faster)\b)/i,
    'write "is not a"',
  ],
  [/\b(?:is|are|was|were) looked (?:whether|at|for|up whether)\b/i, "name who looks"],
  [
    new RegExp(`\\b(?:${THING}) (?:says|said|tells|told|hears|heard)\\b`, "i"),
    "things do not speak: write what they do",
  ],
];

/** @returns {{line: number, text: string}[]} sentences, each with the line of its first word */
function sentences(lines, firstLine) {
  const found = [];
  let text = "";
  let start = firstLine;
  const end = () => {
    if (text.trim() !== "") found.push({ line: start, text: text.trim() });
    text = "";
  };
  lines.forEach((raw, index) => {
    let line = raw.trim();
    // A list item, a heading, a table row, a tag of a docstring or an empty line begins a new sentence.
    const opener = /^(?:[-*•]\s+|\d+\.\s+|#+\s+|\||>\s*|@\w+\s*(?:\{[^}]*\}\s*)?)/.exec(line);
    if (line === "" || opener !== null) end();
    if (opener?.[0].startsWith("@param") === true) line = line.replace(/^@param\s+[\w.]+\s*(?:[-–]\s*)?/, "");
    else if (opener !== null) line = line.slice(opener[0].length);
    // The first word may be emphasized.
    for (const piece of line.split(/(?<=[.!?]["”)*_]*)\s+(?=["“(*_`]*[A-Z])|\s*\|\s*/)) {
      if (text === "") start = firstLine + index;
      text += `${text === "" ? "" : " "}${piece.replace(/^[*_("“]+/, "")}`;
      if (/[.!?]["”)*_]*$/.test(piece) || line.includes("|")) end();
    }
  });
  end();
  return found;
}

function* commentsOf(source, text) {
  const seen = new Set();
  const visit = function* (node) {
    for (const range of [
      ...(ts.getLeadingCommentRanges(text, node.pos) ?? []),
      ...(ts.getTrailingCommentRanges(text, node.end) ?? []),
    ]) {
      if (seen.has(range.pos)) continue;
      seen.add(range.pos);
      yield range;
    }
    for (const child of node.getChildren(source)) yield* visit(child);
  };
  yield* visit(source);
}

function* ofComments(source, text) {
  let block;
  const ranges = [...commentsOf(source, text)].sort((a, b) => a.pos - b.pos);
  for (const { pos, end, kind } of ranges) {
    const { line } = source.getLineAndCharacterOfPosition(pos);
    const body = text.slice(pos, end);
    if (kind === ts.SyntaxKind.SingleLineCommentTrivia) {
      const isNext = block?.next === line && text.slice(text.lastIndexOf("\n", pos) + 1, pos).trim() === "";
      if (!isNext) {
        if (block !== undefined) yield* sentences(block.lines, block.line);
        block = { line: line + 1, lines: [], next: line };
      }
      block.lines.push(body.slice(2));
      block.next = line + 1;
    } else {
      const lines = body.replace(/^\/\*\*?|\*\/$/g, "").split("\n");
      yield* sentences(
        lines.map((each) => each.replace(/^\s*\*(?=\s|$)/, "")),
        line + 1,
      );
    }
  }
  if (block !== undefined) yield* sentences(block.lines, block.line);
}

/** The names that a test file passes to `describe`, `it` and `test`, and to calls such as `it.each(...)(name)`. */
function* testNames(source) {
  const isTest = (node) => {
    if (ts.isIdentifier(node)) return ["describe", "it", "test"].includes(node.text);
    if (ts.isPropertyAccessExpression(node)) return isTest(node.expression);
    return ts.isCallExpression(node) && isTest(node.expression);
  };
  const visit = function* (node) {
    if (ts.isCallExpression(node) && isTest(node.expression)) {
      const [name] = node.arguments;
      if (name !== undefined && (ts.isStringLiteralLike(name) || ts.isTemplateExpression(name))) {
        const { line } = source.getLineAndCharacterOfPosition(name.getStart(source));
        yield { line: line + 1, text: name.getText(source).slice(1, -1) };
      }
    }
    for (const child of node.getChildren(source)) yield* visit(child);
  };
  yield* visit(source);
}

/** The text of a document without its code: blocks become empty lines, and code in a sentence becomes one word. */
function* ofDocument(text) {
  let fenced = false;
  const lines = text.split("\n").map((line) => {
    const isFence = /^\s*(```|~~~)/.test(line);
    if (isFence) fenced = !fenced;
    return isFence || fenced ? "" : line.replace(/`[^`]*`/g, "`code`");
  });
  yield* sentences(lines, 1);
}

function* proseOf(path) {
  const text = readFileSync(path, "utf8");
  if (path.endsWith(".md")) {
    yield* ofDocument(text);
    return;
  }
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  for (const { line, text: sentence } of ofComments(source, text)) {
    yield { line, text: sentence.replace(/`[^`]*`/g, "`code`").replace(/\{@link [^}]*\}/g, "`code`") };
  }
  if (path.endsWith(".test.ts")) yield* testNames(source);
}

const wanted = process.argv.slice(2);
const files = execFileSync("git", ["ls-files", "-co", "--exclude-standard", ...wanted], { encoding: "utf8" })
  .split("\n")
  // Git also lists files that were deleted since the last commit.
  .filter((path) => /\.(ts|mts|mjs|cjs|md)$/.test(path) && existsSync(path));

let problems = 0;
for (const path of files) {
  for (const { line, text } of proseOf(path)) {
    for (const [pattern, advice] of RULES) {
      const match = pattern.exec(text);
      if (match === null) continue;
      problems += 1;
      process.stdout.write(`${path}:${line}: “${match[0]}”: ${advice}\n    ${text.slice(0, 160)}\n`);
    }
  }
}
if (problems > 0) {
  process.stdout.write(`${problems} passages to rewrite\n`);
  process.exitCode = 1;
}
