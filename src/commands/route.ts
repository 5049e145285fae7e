import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { durationFlag, userFlag } from "../cli/flags/flags.js";
import { warnOfClosedPool } from "../cli/render/pool.js";
import { runRoute } from "../cli/render/route.js";
import type { Rebalanced, RouteView } from "../fleet/options.js";
import type { RebalancePlan } from "../hosts/rebalance.js";

export default class Route extends FleetCommand {
  static override summary =
    "Show which server a user's next session would use, and why, or which users would move between hosts.";
  static override description = "Does not start servers. Moves users only with --rebalance.";
  static override examples = [
    "<%= config.bin %> route --user alice",
    "<%= config.bin %> route --user alice --strategy least-loaded --json",
    "<%= config.bin %> route --plan",
    "<%= config.bin %> route --rebalance --wait 60s",
  ];
  static override flags = {
    user: userFlag,
    strategy: Flags.option({
      description: "how to choose among shared servers (default: pool.strategy)",
      options: ["sticky", "round-robin", "least-loaded"] as const,
    })(),
    plan: Flags.boolean({ description: "show which users would move to which host without moving them" }),
    rebalance: Flags.boolean({ description: "move users between hosts, each session between two turns" }),
    wait: durationFlag(
      "wait",
      "with --rebalance: how long to wait for turns of one user to end (default: drain.timeout)",
    ),
  };

  async run(): Promise<RouteView | RebalancePlan | Rebalanced> {
    const { flags } = await this.parse(Route);
    const { user, strategy, plan, rebalance, wait } = flags;
    const asked = { user, strategy, plan, rebalance, wait };
    return await this.withFleet(async (fleet) => {
      const result = await runRoute(fleet, asked, (text) => this.log(text));
      if ("pool" in result && !this.jsonEnabled()) warnOfClosedPool(result.pool);
      return result;
    });
  }
}
