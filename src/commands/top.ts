import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { warnOfClosedPool } from "../cli/render/lists/servers.js";
import { renderOverview } from "../cli/render/overview.js";
import type { Overview } from "../peers/overview.js";

export default class Top extends FleetCommand {
  /** `command-id.ts` adds --once to this alias. */
  static override aliases = ["status"];
  static override summary = "Show hosts, servers, sessions and users, live on a terminal.";
  static override description =
    "The last line of the screen shows the keys: they sort, filter, drain, restart, evict, and open logs and " +
    "transcripts. With --once, with --json or in a pipe, it prints the current state once.";
  static override examples = ["<%= config.bin %> top", "<%= config.bin %> top --once", "<%= config.bin %> top --json"];
  static override flags = { once: Flags.boolean({ description: "print the current state once" }) };

  async run(): Promise<Overview> {
    const { flags } = await this.parse(Top);
    return await this.withFleet(async (fleet) => {
      const isLive = process.stdout.isTTY === true && process.stdin.isTTY === true;
      if (isLive && !flags.once && !this.jsonEnabled()) {
        const { showTop } = await import("../cli/top/top.js");
        const signal = this.interruptSignal();
        const last = await showTop(fleet, signal);
        signal.throwIfAborted();
        return last;
      }
      using progress = this.progress("Asking all hosts");
      const overview = await fleet.hosts.overview();
      progress.end();
      if (!this.jsonEnabled()) warnOfClosedPool(overview.pool);
      this.log(renderOverview(overview));
      return overview;
    });
  }
}
