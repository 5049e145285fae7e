import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { warnOfClosedPool } from "../cli/render/lists/servers.js";
import { renderOverview, viewOverview } from "../cli/render/overview.js";
import { REFRESH_MS, showLive } from "../cli/run/live.js";
import type { Overview } from "../peers/overview.js";

export default class Top extends FleetCommand {
  static override summary = "Show hosts, servers and sessions, live on a terminal. Arrow keys scroll, q quits.";
  static override description = "With --once, with --json or in a pipe, it prints the current state once.";
  static override examples = ["<%= config.bin %> top", "<%= config.bin %> top --once", "<%= config.bin %> top --json"];
  static override flags = { once: Flags.boolean({ description: "print the current state once" }) };

  async run(): Promise<Overview> {
    const { flags } = await this.parse(Top);
    return await this.withFleet(async (fleet) => {
      let last = await fleet.hosts.overview();
      const isLive = process.stdout.isTTY === true && process.stdin.isTTY === true;
      if (flags.once || this.jsonEnabled() || !isLive) {
        if (!this.jsonEnabled()) warnOfClosedPool(last.pool);
        this.log(renderOverview(last));
        return last;
      }
      const look = async () => {
        last = await fleet.hosts.overview();
        // Show warnings inside the live view, because standard error would overwrite it.
        return viewOverview(last, fleet.takeWarnings());
      };
      const signal = this.interruptSignal();
      await showLive(look, REFRESH_MS, signal);
      signal.throwIfAborted();
      return last;
    });
  }
}
