import { Flags } from "@oclif/core";
import { inspectConfig, type ValueView } from "../../../config/load/inspect.js";
import { FleetCommand } from "../../base-command.js";
import { type ConfigProblem, problemView, renderValues, reportProblems } from "../../render/results.js";

interface Shown {
  /** The values in force by dotted key. A value that is not allowed is left out. */
  values: Record<string, ValueView>;
  /** The problems that `config check` reports. */
  problems: ConfigProblem[];
}

export default class ConfigShow extends FleetCommand {
  static override summary = "Show the configuration in force, with the origin of each value.";
  static override description =
    "Never shows a secret. If the configuration is wrong, shows the values that can be used, reports the problems, and " +
    "exits with 3.";
  static override examples = ["<%= config.bin %> config show", "<%= config.bin %> config show --changed"];
  static override flags = {
    changed: Flags.boolean({ description: "leave out the values that are defaults" }),
  };

  async run(): Promise<Shown> {
    const { flags } = await this.parse(ConfigShow);
    const view = inspectConfig(this.configSource);
    const shown = Object.entries(view.values).filter(([, { origin }]) => !flags.changed || origin.from !== "default");
    this.log(shown.length === 0 ? "All values are defaults." : renderValues(shown));
    reportProblems(view, this.jsonEnabled());
    return { values: Object.fromEntries(shown), problems: view.problems.map(problemView) };
  }
}
