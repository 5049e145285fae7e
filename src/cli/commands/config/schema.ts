import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../../base-command.js";

export default class ConfigSchema extends FleetCommand {
  static override summary = "Print the JSON Schema of configuration files, for editors.";
  static override description = 'Save it and name it in a file: "$schema": "./copilotfleet.schema.json".';
  static override examples = ["<%= config.bin %> config schema > copilotfleet.schema.json"];
  // This command reads no configuration, so it does not take `--config`.
  static override baseFlags = FLAGS_WITHOUT_CONFIG;

  async run(): Promise<{ [keyword: string]: unknown }> {
    await this.parse(ConfigSchema);
    const text = await readFile(join(this.config.root, "schemas", "config.json"), "utf8");
    this.log(text.trimEnd());
    return JSON.parse(text) as { [keyword: string]: unknown };
  }
}
