import { Args } from "@oclif/core";
import { quote } from "../../../base/errors.js";
import { redact } from "../../../base/values/text.js";
import { findKey, nearestKeys } from "../../../config/keys.js";
import { inspectConfig, type ValueOrigin, valueAt } from "../../../config/load/inspect.js";
import { FleetCommand } from "../../base-command.js";
import { usage } from "../../flags/flags.js";
import { type ConfigProblem, problemView, renderValue, reportProblems } from "../../render/results.js";

interface Got {
  key: string;
  /** The value, as a configuration file would contain it. For a section, an object with its values. */
  value: unknown;
  /** Null for a section, and for a value that is not allowed. */
  origin: ValueOrigin | null;
  /** The problems that `config check` reports. */
  problems: ConfigProblem[];
}

export default class ConfigGet extends FleetCommand {
  static override summary = "Print one value of the configuration in force.";
  static override description = "Prints a text as it is, and everything else as JSON. Never prints a secret.";
  static override examples = ["<%= config.bin %> config get session.ttl", "<%= config.bin %> config get ports"];
  static override args = {
    key: Args.string({ description: "dotted key, or a section", required: true, ignoreStdin: true }),
  };

  async run(): Promise<Got> {
    const { args } = await this.parse(ConfigGet);
    if (findKey(args.key) === undefined) {
      const near = nearestKeys(args.key).slice(0, 3);
      throw usage(
        `${quote(redact(args.key))} is not a key of the configuration.`,
        near.length === 0
          ? ["copilotfleet config show # lists all keys"]
          : near.map((key): `copilotfleet ${string}` => `copilotfleet config get ${key}`),
      );
    }
    const view = inspectConfig(this.configSource);
    const found = valueAt(view, args.key);
    if (found !== undefined) this.log(renderValue(found.value));
    reportProblems(view, this.jsonEnabled());
    const { value, origin } = found ?? { value: null, origin: null };
    return { key: args.key, value, origin, problems: view.problems.map(problemView) };
  }
}
