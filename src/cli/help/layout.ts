import stringWidth from "string-width";

/** Takes the place of a space at which a line must not break. */
const FIXED_SPACE = "\u00a0";

/** Wraps text at spaces. Never breaks a word, even if it is longer than a line, because a user may want to copy it. */
export function wrap(text: string, width: number): string[] {
  return text.split("\n").flatMap((paragraph) => {
    const lines: string[] = [];
    for (const word of paragraph.split(" ")) {
      const line = lines.at(-1);
      if (line !== undefined && stringWidth(line) + 1 + stringWidth(word) <= width)
        lines[lines.length - 1] = `${line} ${word}`;
      else lines.push(word);
    }
    return lines;
  });
}

export interface Term {
  /** May contain escape codes for colours. */
  term: string;
  text: string;
}

/**
 * Renders terms with their explanations beside them. If a term is too long for its column, its explanation begins on
 * the next line.
 */
export function renderTerms(terms: readonly Term[], width: number): string[] {
  const most = Math.floor(width * 0.4);
  const widths = terms.map(({ term }) => stringWidth(term)).filter((each) => each <= most);
  const column = Math.max(0, ...widths);
  return terms.flatMap(({ term, text }) => {
    const lines = wrap(text, width - column - 4).map((line) => `${" ".repeat(column + 4)}${line}`.trimEnd());
    const own = stringWidth(term);
    if (own > column || text === "") return [`  ${term}`, ...(text === "" ? [] : lines)];
    const [first = "", ...rest] = lines;
    return [`  ${term}${" ".repeat(column - own + 2)}${first.trimStart()}`, ...rest];
  });
}

/** Renders a usage line. Never breaks it between a flag and its value, or inside brackets. */
export function renderUsage(usage: string, width: number): string[] {
  return indent(wrap(unbroken(usage, /\[[^\]]*\]/g), width - 4));
}

/** Renders a line for a shell. A long line is broken so that it can still be pasted. */
export function renderShellLine(line: string, width: number): string[] {
  // The indent takes up to 4 columns, and the space with the backslash takes 2.
  const lines = wrap(unbroken(line, /"[^"]*"|'[^']*'/g), width - 6);
  return indent(lines.map((part, at) => (at === lines.length - 1 ? part : `${part} \\`)));
}

function unbroken(line: string, parts: RegExp): string {
  const fix = (text: string) => text.replaceAll(" ", FIXED_SPACE);
  return line.replace(parts, fix).replace(/(?<=^|\s)--?\w[\w-]* (?=[^\s-])/g, fix);
}

function indent(lines: readonly string[]): string[] {
  return lines.map((line, at) => `${at === 0 ? "  " : "    "}${line}`.replaceAll(FIXED_SPACE, " "));
}
