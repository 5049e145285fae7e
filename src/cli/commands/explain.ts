import { Args } from "@oclif/core";
import { type ErrorGroup, type Explanation, errorGroups, explain } from "../../base/errors/explanation.js";
import { quote, type Suggestion } from "../../base/errors.js";
import { nearestOf } from "../../base/values/names.js";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { usage } from "../flags/flags.js";
import { renderErrorGroups, renderExplanation } from "../report.js";

interface ErrorList {
  groups: ErrorGroup[];
}

export default class Explain extends FleetCommand {
  static override summary =
    "Show what an error code means, what causes it and what to do. Without a code, list all codes. " +
    "With an exit code, list the codes that have it.";
  static override examples = [
    "<%= config.bin %> explain FLEET_SESSION_LOCKED",
    "<%= config.bin %> explain 5",
    "<%= config.bin %> explain",
  ];
  // This command reads no configuration, so it does not take `--config`.
  static override baseFlags = FLAGS_WITHOUT_CONFIG;
  static override args = {
    code: Args.string({
      description: "the code of the error, such as FLEET_SESSION_LOCKED, or an exit code, such as 5",
      ignoreStdin: true,
    }),
  };

  async run(): Promise<Explanation | ErrorList> {
    const { args } = await this.parse(Explain);
    if (args.code === undefined) {
      const groups = errorGroups();
      this.log(renderErrorGroups(groups));
      return { groups };
    }
    const group = errorGroups().find(({ exit }) => String(exit) === args.code);
    if (group !== undefined) {
      this.log(renderErrorGroups([group]));
      return { groups: [group] };
    }
    const explanation = explain(args.code);
    if (explanation === null) throw unknownCode(args.code);
    this.log(renderExplanation(explanation));
    return explanation;
  }
}

/** Suggests the codes that contain the given text, or else those with a similar name. */
function unknownCode(given: string) {
  const word = given.toUpperCase().slice(0, 80);
  const codes = errorGroups().flatMap(({ errors }) => errors.map(({ code }) => code));
  const name = word.replace(/^FLEET_?/, "");
  const alike = name.length < 3 ? [] : codes.filter((code) => code.includes(word));
  const near = alike.length > 0 ? alike : nearestOf(name, codes, (code) => code.replace(/^FLEET_/, ""));
  const allowed =
    near.length > 0 ? "" : " Allowed: the code of an error, such as FLEET_SESSION_LOCKED, or an exit code.";
  return usage(`${quote(given)} is not an error code.${allowed}`, [
    ...near.map((code): Suggestion => `copilotfleet explain ${code}`),
    "copilotfleet explain # lists all codes",
  ]);
}
