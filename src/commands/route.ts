import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { requiredUserFlag } from "../cli/flags.js";
import { renderState, renderTable } from "../cli/table.js";
import type { RouteView } from "../fleet-options.js";

export default class Route extends FleetCommand {
  static override summary = "Show which server a user's next session goes to, and why. Starts nothing.";
  static override examples = [
    "<%= config.bin %> route --user alice",
    "<%= config.bin %> route --user alice --strategy least-loaded --json",
  ];
  static override flags = {
    user: requiredUserFlag,
    strategy: Flags.option({
      description: "how to choose among shared servers (default: pool.strategy)",
      options: ["sticky", "round-robin", "least-loaded"] as const,
    })(),
  };

  async run(): Promise<RouteView> {
    const { flags } = await this.parse(Route);
    return await this.withFleet(async (fleet) => {
      const route = await fleet.route(flags.user, flags.strategy === undefined ? {} : { strategy: flags.strategy });
      const { user, serverId, server, reason } = route;
      const row = [user, serverId, server?.url ?? null, renderState(server?.state ?? "stopped"), reason];
      this.log(renderTable(["USER", "SERVER", "URL", "STATE", "REASON"], [row]));
      return route;
    });
  }
}
