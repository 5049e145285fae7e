import { Args } from "@oclif/core";
import { closest } from "fastest-levenshtein";
import { FleetCommand } from "../cli/base-command.js";
import { usage } from "../cli/flags/flags.js";
import { ERRORS, type ErrorEntry, quote } from "../errors.js";

interface Explanation extends Omit<ErrorEntry, "retryable"> {
  code: string;
  retryable: boolean;
}

export default class Explain extends FleetCommand {
  static override summary = "Show what an error code means, what causes it and what to do.";
  static override examples = ["<%= config.bin %> explain FLEET_SESSION_LOCKED"];
  // This command reads no configuration, so it does not take `--config`.
  static override baseFlags = {};
  static override args = {
    code: Args.string({ description: "the code of the error, such as FLEET_SESSION_LOCKED", required: true }),
  };

  async run(): Promise<Explanation> {
    const { args } = await this.parse(Explain);
    const explanation = explain(args.code);
    this.log(renderExplanation(explanation));
    return explanation;
  }
}

function explain(given: string): Explanation {
  const code = given.toUpperCase();
  const entry: ErrorEntry | undefined = Object.hasOwn(ERRORS, code) ? ERRORS[code as keyof typeof ERRORS] : undefined;
  if (entry === undefined) {
    const near = closest(code.slice(0, 80), Object.keys(ERRORS));
    throw usage(`${quote(given)} is not an error code. The codes are in docs/errors.md.`, [
      `copilotfleet explain ${near}`,
    ]);
  }
  const { exit, httpStatus, retryable = false, title, causes, fixes } = entry;
  return { code, exit, httpStatus, retryable, title, causes, fixes };
}

function renderExplanation({ code, title, exit, httpStatus, retryable, causes, fixes }: Explanation): string {
  const list = (heading: string, items: readonly string[]) =>
    `\n${heading}:\n${items.map((item) => `  - ${item}`).join("\n")}`;
  const again = retryable ? "yes, the same call may succeed in a moment" : "no";
  return [
    `${code}: ${title}`,
    list("Possible causes", causes),
    list("Next steps", fixes),
    `\nExit code ${exit}, HTTP status ${httpStatus}. Worth another try: ${again}.`,
  ].join("\n");
}
