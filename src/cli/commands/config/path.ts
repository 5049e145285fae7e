import { printable } from "../../../base/values/text.js";
import { inspectConfig } from "../../../config/load/inspect.js";
import type { ConfigFile } from "../../../config/load/load.js";
import { FleetCommand } from "../../base-command.js";
import { renderTable } from "../../render/table.js";

const STATES: Record<ConfigFile["state"], string> = {
  read: "read",
  missing: "does not exist",
  unusable: "cannot be used",
  untrusted: "not trusted",
};

export default class ConfigPath extends FleetCommand {
  static override summary = "Show which configuration files are read. The first one takes precedence.";
  static override description =
    "Flags and COPILOTFLEET_ variables take precedence over files. The project's file is the nearest .copilotfleet.json, " +
    "searched upward from the working folder.";

  async run(): Promise<{ files: ConfigFile[] }> {
    await this.parse(ConfigPath);
    const { files } = inspectConfig(this.configSource);
    this.log(
      renderTable(
        [{ heading: "FILE", cut: "middle" }, "KIND", "STATE"],
        files.map(({ path, kind, state }) => [printable(path), kind, STATES[state]]),
      ),
    );
    return { files };
  }
}
