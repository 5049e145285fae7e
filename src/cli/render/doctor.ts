import type { Check, CheckLevel } from "../../fleet/doctor/checks.js";
import { colour } from "./colour.js";
import { renderSuggestion } from "./explanation.js";
import { terminalWidth } from "./table.js";

const MARKS = {
  ok: colour.green("ok    "),
  warning: colour.yellow("WARN  "),
  failed: colour.red("FAIL  "),
  skipped: colour.yellow("SKIP  "),
} as const;

const INDENT = 24;
/** How many items of a check are shown. `--json` lists all items. */
const MOST_ITEMS = 20;

/** Renders a check: its result, a line for each thing that it found, and the suggested repair. */
export function renderCheck({ name, level, detail, items, fix, fixed }: Check): string {
  const mark = fixed ? colour.yellow("mended") : MARKS[level];
  const more = items.length - MOST_ITEMS;
  const lines = [
    ...items.slice(0, MOST_ITEMS).map((item) => `- ${item}`),
    ...(more > 0 ? [`- and ${more} more, which --json lists`] : []),
    ...(fix === null ? [] : [renderSuggestion(fix)]),
  ];
  return [
    `${mark} ${name.padEnd(INDENT - 8)} ${wrap(detail)}`,
    ...lines.map((line) => " ".repeat(INDENT) + wrap(line)),
  ].join("\n");
}

/** Renders how many checks have each result, and names those that need attention. */
export function renderSummary(checks: readonly Check[]): string {
  const named = (level: CheckLevel, word: string) => {
    const names = checks.filter((check) => check.level === level).map(({ name }) => name);
    return names.length === 0 ? [] : [`${names.length} ${word} (${names.join(", ")})`];
  };
  const good = checks.filter(({ level }) => level === "ok").length;
  const parts = [...named("failed", "failed"), ...named("warning", "with a warning"), ...named("skipped", "skipped")];
  return [`${checks.length} checks: ${good} ok`, ...parts].join(", ");
}

/** Breaks a text between words so that it fits on a terminal. The lines after the first are indented. */
function wrap(text: string): string {
  const width = Math.max(terminalWidth() - INDENT, 30);
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.length - 1;
    const longer = lines[last] === "" ? word : `${lines[last]} ${word}`;
    if (lines[last] === "" || longer.length <= width) lines[last] = longer;
    else lines.push(word);
  }
  return lines.join(`\n${" ".repeat(INDENT)}`);
}
