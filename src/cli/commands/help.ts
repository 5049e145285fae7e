import { Args } from "@oclif/core";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { renderHelp } from "../help.js";

export default class Help extends FleetCommand {
  static override summary = "Show all commands, or the flags and examples of one command.";
  static override examples = ["<%= config.bin %> help", "<%= config.bin %> help token issue"];
  // This command reads no configuration, so it does not take `--config`.
  static override baseFlags = FLAGS_WITHOUT_CONFIG;
  static override strict = false;
  static override args = { command: Args.string({ description: "the words of a command", ignoreStdin: true }) };

  async run(): Promise<{ help: string }> {
    const { argv } = await this.parse(Help);
    const help = renderHelp(argv as string[], this.config);
    this.log(help);
    return { help };
  }
}
