import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { choiceFlag, durationFlag, given, usage } from "../cli/flags/flags.js";
import { actingUserFlagUnless } from "../cli/flags/user.js";
import { warnOfClosedPool } from "../cli/render/lists/servers.js";
import { renderPlan, renderRebalanced, renderRoute } from "../cli/render/route.js";
import { writeDuration } from "../config/values/duration.js";
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
    user: actingUserFlagUnless(["plan", "rebalance"]),
    strategy: choiceFlag("strategy", "how to choose among shared servers (default: pool.strategy)", [
      "sticky",
      "round-robin",
      "least-loaded",
    ]),
    plan: Flags.boolean({ description: "show which users would move to which host without moving them" }),
    rebalance: Flags.boolean({ description: "move users between hosts, each session between two turns" }),
    wait: durationFlag(
      "wait",
      "with --rebalance: how long to wait for turns of one user to end (default: drain.timeout)",
    ),
  };

  async run(): Promise<RouteView | RebalancePlan | Rebalanced> {
    const { user, strategy, plan, rebalance, wait } = (await this.parse(Route)).flags;
    const asked = [user === undefined ? [] : "--user", plan ? "--plan" : [], rebalance ? "--rebalance" : []].flat();
    if (asked.length > 1)
      throw usage(`${asked.join(" and ")} cannot be used together. Give one of them.`, [
        "copilotfleet route --user USER",
        "copilotfleet route --plan",
      ]);
    if (strategy !== undefined && user === undefined)
      throw usage("--strategy needs --user.", [`copilotfleet route --user USER --strategy ${strategy}`]);
    if (wait !== undefined && !rebalance)
      throw usage(
        plan ? "--plan and --wait cannot be used together, because --plan moves nobody." : "--wait needs --rebalance.",
        [
          ...(plan ? (["copilotfleet route --plan # shows the plan"] as const) : []),
          `copilotfleet route --rebalance --wait ${writeDuration(wait)} # moves users between hosts`,
        ],
      );
    return await this.withFleet(async (fleet) => {
      using _ = this.progress(rebalance ? "Moving users" : "Asking all hosts");
      if (rebalance) return this.#show(await fleet.hosts.rebalance(given({ wait })), renderRebalanced);
      if (plan) return this.#show(await fleet.hosts.planRebalance(), renderPlan);
      if (user === undefined)
        throw usage("--user, --plan or --rebalance is missing.", [
          "copilotfleet route --user USER # shows the user's server and host",
          "copilotfleet route --plan # shows which users --rebalance would move",
          "copilotfleet route --rebalance # moves users between hosts",
        ]);
      const route = this.#show(await fleet.servers.route(user, given({ strategy })), renderRoute);
      if (!this.jsonEnabled()) warnOfClosedPool(route.pool);
      return route;
    });
  }

  #show<Result>(result: Result, render: (result: Result) => string): Result {
    this.log(render(result));
    return result;
  }
}
