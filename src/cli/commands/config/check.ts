import { printable } from "../../../base/values/text.js";
import { ignoredVariables } from "../../../config/load/environment.js";
import { inspectConfig } from "../../../config/load/inspect.js";
import type { ConfigFile } from "../../../config/load/load.js";
import { FleetCommand } from "../../base-command.js";
import { colour } from "../../render/colour.js";
import { type ConfigProblem, problemView } from "../../render/results.js";
import { errorText } from "../../report.js";

interface Checked {
  ok: boolean;
  /** Everything that makes commands refuse the configuration, and wrong values that another source overrides. */
  problems: ConfigProblem[];
  /** Variables that look like settings, but have no effect. */
  warnings: string[];
  files: ConfigFile[];
}

export default class ConfigCheck extends FleetCommand {
  static override summary = "Check all configuration files and variables, without opening the store.";
  static override description = "Shows each problem with its file and line. Exits with 3 if there is one.";

  async run(): Promise<Checked> {
    await this.parse(ConfigCheck);
    const { problems, files } = inspectConfig(this.configSource);
    const ignored = ignoredVariables(process.env);
    for (const problem of problems) this.log(`${colour.red("FAIL")} ${errorText(problem)}`);
    if (ignored !== null) this.log(`${colour.yellow("WARN")} ${printable(ignored)}`);
    const read = files.filter(({ state }) => state === "read").map(({ path }) => printable(path));
    const sources = read.length === 0 ? "There is no configuration file." : `Files: ${read.join(", ")}`;
    if (problems.length === 0) this.log(`${colour.green("ok")}   The configuration is valid. ${sources}`);
    else process.exitCode = 3;
    const warnings = ignored === null ? [] : [ignored];
    return { ok: problems.length === 0, problems: problems.map(problemView), warnings, files };
  }
}
