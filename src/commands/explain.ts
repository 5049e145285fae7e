import { Args } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { type Explanation, explain, renderExplanation } from "../cli/render/explain.js";

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
