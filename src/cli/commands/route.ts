import type { RouteView } from "../../hosts/options.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, choiceFlag, given } from "../flags/flags.js";
import { warnOfClosedPool } from "../render/columns.js";
import { renderRoute } from "../render/results.js";

export default class Route extends FleetCommand {
  static override summary = "Show which server a user's next session would use, and why.";
  static override description = "Starts no server and places nobody.";
  static override examples = [
    "<%= config.bin %> route --user alice",
    "<%= config.bin %> route --user alice --strategy least-loaded --json",
  ];
  static override flags = {
    user: actingUserFlag,
    strategy: choiceFlag("strategy", "how to choose among shared servers (default: pool.strategy)", [
      "sticky",
      "round-robin",
      "least-loaded",
    ]),
  };

  async run(): Promise<RouteView> {
    const { user, strategy } = (await this.parse(Route)).flags;
    return await this.withFleet(async (fleet) => {
      using _ = this.progress("Asking all hosts");
      const route = await fleet.servers.route(user, given({ strategy }));
      this.log(renderRoute(route));
      if (!this.jsonEnabled()) warnOfClosedPool(route.pool);
      return route;
    });
  }
}
