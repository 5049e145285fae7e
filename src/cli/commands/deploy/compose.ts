import { loadConfig } from "../../../config/load/load.js";
import { FleetCommand } from "../../base-command.js";
import { containerFlags } from "../../flags/deploy.js";

export default class DeployCompose extends FleetCommand {
  static override summary = "Print a Docker Compose file for this configuration.";
  static override description =
    "With more than one host, the file includes a Redis, unless the configuration names one on another machine. The file " +
    "contains no secrets: docker compose mounts them from the folder secrets, which comments at the top describe.";
  static override examples = [
    "<%= config.bin %> deploy compose > compose.yaml",
    "<%= config.bin %> deploy compose --replicas 3 --storage shared",
  ];
  static override flags = containerFlags;

  async run(): Promise<{ compose: Record<string, unknown>; notices: string[] }> {
    const { flags } = await this.parse(DeployCompose);
    // Import the renderer only here, so that other commands start without its libraries.
    const { renderCompose } = await import("../../../deploy/compose.js");
    const { compose, notices, yaml } = renderCompose(loadConfig(this.configSource), {
      ...flags,
      image: flags.image ?? `copilotfleet:${this.config.version}`,
    });
    this.log(yaml.trimEnd());
    return { compose, notices };
  }
}
