import type { ErrorGroup, Explanation } from "../../errors/explanation.js";
import { isCommand, withoutComment } from "../../errors.js";

/** Renders a next step: "Try" before a command, "Hint" before other text. Moves the comment to the front. */
export function renderSuggestion(suggestion: string): string {
  const { line, comment } = withoutComment(suggestion);
  return `${isCommand(line) ? "Try" : "Hint"}${comment === "" ? "" : ` (${comment})`}: ${line}`;
}

function renderFix(suggestion: string): string {
  const { line, comment } = withoutComment(suggestion);
  return comment === "" ? line : `${line}\n    (${comment})`;
}

export function renderExplanation(explanation: Explanation): string {
  const { code, title, data, exit, httpStatus, retryable, causes, fixes } = explanation;
  const list = (heading: string, items: readonly string[]) =>
    `\n${heading}:\n${items.map((item) => `  - ${item}`).join("\n")}`;
  const again = retryable ? "yes, the same call may succeed in a moment" : "no";
  return [
    `${code}: ${title}`,
    list("Users' data", [data]),
    list("Possible causes", causes),
    list("Next steps", fixes.map(renderFix)),
    `\nExit code ${exit}, HTTP status ${httpStatus}. Worth another try: ${again}.`,
  ].join("\n");
}

export function renderErrorGroups(groups: readonly ErrorGroup[]): string {
  const width = Math.max(...groups.flatMap(({ errors }) => errors.map(({ code }) => code.length)));
  return groups
    .map(({ exit, title, errors }) => {
      const lines = errors.map(({ code, title: meaning }) => `  ${code.padEnd(width)}   ${meaning}`);
      return [`${title} (exit code ${exit}):`, ...lines, ""].join("\n");
    })
    .concat("Explain one of them: copilotfleet explain CODE")
    .join("\n");
}
