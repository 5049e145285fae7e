import { type Node, type ParseError, parseTree, printParseErrorCode } from "jsonc-parser";

/* The places of faults and keys in a file, for messages. `JSON.parse` reads the values. */

/** The position at which a text stops being JSON. */
export interface JsonFault {
  line: number;
  column: number;
  reason: string;
}

const REASONS: Readonly<Record<string, string>> = {
  InvalidCommentToken: "comments are not JSON",
  PropertyNameExpected: "expected a name in double quotes",
  ColonExpected: "expected a colon",
  CommaExpected: "expected a comma",
  EndOfFileExpected: "nothing may follow the end",
  UnexpectedEndOfString: "expected a double quote at the end of the text",
  InvalidCharacter: "a text must not contain control characters",
};

/** Finds the fault itself, because V8's messages often lack the position and may quote a secret from the text. */
export function locateJsonFault(text: string): JsonFault {
  const errors: ParseError[] = [];
  treeOf(text, errors);
  const offset = errors[0]?.offset ?? text.length;
  const before = text.slice(0, offset);
  // The error after an invalid symbol names what was expected in its place.
  const codes = errors.map(({ error }) => printParseErrorCode(error));
  const code = codes.find((name) => name !== "InvalidSymbol") ?? "";
  const isTrailing = /[}\]]/.test(text.charAt(offset)) && before.trimEnd().endsWith(",");
  return {
    line: before.split("\n").length,
    column: offset - before.lastIndexOf("\n"),
    reason:
      offset >= text.length
        ? "it ends too early"
        : isTrailing
          ? "a comma must not be the last thing in a list or object"
          : (REASONS[code] ?? "expected a value"),
  };
}

function treeOf(text: string, errors: ParseError[]): Node | undefined {
  try {
    return parseTree(text, errors, { disallowComments: true });
  } catch (error) {
    // The parser calls itself for each level of a value.
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

/**
 * Returns the line of a key in a text that `JSON.parse` accepts, or undefined if the key is not there. If a key is
 * there twice, the last one counts, as for `JSON.parse`.
 *
 * @param name the dotted key, with an index ("runtime.args[0]") for an item of a list
 */
export function lineOfKey(text: string, name: string): number | undefined {
  let node = treeOf(text, []);
  let offset: number | undefined;
  for (const [, part, index] of name.matchAll(/([^.[\]]+)|\[(\d+)\]/g)) {
    const property = node?.children?.findLast(({ children: [key] = [] }) => part !== undefined && key?.value === part);
    const item = index === undefined ? undefined : node?.children?.[Number(index)];
    // An item of a list has no name, so it is on the line of its value.
    node = item ?? property?.children?.[1];
    offset = (item ?? property)?.offset;
  }
  return offset === undefined ? undefined : text.slice(0, offset).split("\n").length;
}
