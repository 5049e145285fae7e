import type { ErrorGroup, Explanation } from "../../errors/explanation.js";
import { isCommand } from "../../errors.js";

/** Renders a next step. The label shows whether the user can type it. */
export function renderSuggestion(suggestion: string): string {
  return `${isCommand(suggestion) ? "Try" : "Hint"}: ${suggestion}`;
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
    list("Next steps", fixes),
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
