import { isCommand } from "../../errors.js";

/** Renders a next step. The label shows whether the user can type it. */
export function renderSuggestion(suggestion: string): string {
  return `${isCommand(suggestion) ? "Try" : "Hint"}: ${suggestion}`;
}
