import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { given, lifetimeFlag, userFlag } from "../cli/flags/flags.js";
import { exitCodeOfGc, renderGc } from "../cli/render/gc.js";
import type { GcResult } from "../sessions/gc/collect.js";

export default class Gc extends FleetCommand {
  static override summary = "Delete sessions past their TTL and clear dead servers and their folders.";
  static override description =
    "Keeps sessions that are in use, in a turn or under a lease, whatever their age. Prints one summary line. It is " +
    "safe to run from cron, and while another gc is running.";
  static override examples = ["<%= config.bin %> gc --ttl 24h", "<%= config.bin %> gc --ttl 7d --dry-run --json"];
  static override flags = {
    ttl: lifetimeFlag(
      "delete sessions that were not used for this long (default: session.ttl); a session's own TTL wins",
    ),
    "dry-run": Flags.boolean({ description: "show what would be deleted without changing anything" }),
    user: userFlag,
  };

  async run(): Promise<GcResult> {
    const { flags } = await this.parse(Gc);
    return await this.withFleet(async (fleet) => {
      const signal = this.interruptSignal();
      using progress = this.progress(
        flags["dry-run"] ? "Looking for unused sessions" : "Deleting unused sessions",
        signal,
      );
      const result = await fleet.sessions.gc({
        dryRun: flags["dry-run"],
        onProgress: progress.report,
        signal,
        ...given({ ttl: flags.ttl, user: flags.user }),
      });
      this.log(renderGc(result));
      process.exitCode = exitCodeOfGc(result);
      return result;
    });
  }
}
