import { loadConfig } from "../../../config/load/load.js";
import type { UnitFile } from "../../../deploy/systemd.js";
import { FleetCommand } from "../../base-command.js";
import { systemdFlags } from "../../flags/deploy.js";

export default class DeploySystemd extends FleetCommand {
  static override summary =
    "Print systemd units for this configuration: for serve, for its socket, and a timer for gc.";
  static override description =
    "Prints each file below a comment with its path. --output writes the files instead. The units contain no secrets: put " +
    "keys, tokens and a Redis URL with a password into files below /etc/copilotfleet/secrets.";
  static override examples = [
    "<%= config.bin %> deploy systemd",
    "<%= config.bin %> deploy systemd --command /usr/bin/copilotfleet --output /",
  ];
  static override flags = systemdFlags;

  async run(): Promise<{ files: UnitFile[]; notices: string[]; written: string[] }> {
    const { flags } = await this.parse(DeploySystemd);
    // Import the renderer only here, so that other commands start without its libraries.
    const { renderSystemd, writeFiles } = await import("../../../deploy/systemd.js");
    const options = { command: flags.command, user: flags["run-as"] };
    const { files, notices, text } = renderSystemd(loadConfig(this.configSource), options);
    const written = flags.output === undefined ? [] : await writeFiles(flags.output, files);
    this.log(flags.output === undefined ? text.trimEnd() : [...written, "", ...notices].join("\n"));
    return { files, notices, written };
  }
}
