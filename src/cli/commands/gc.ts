import { Flags } from "@oclif/core";
import type { Fleet } from "../../fleet/fleet.js";
import type { GcRequest, GcResult } from "../../sessions/gc/collect.js";
import { FleetCommand } from "../base-command.js";
import { given, lifetimeFlag, userFilter, yesFlag } from "../flags/flags.js";
import { askToDelete, confirm, isAsked } from "../prompt.js";
import { exitCodeOfGc, renderGc, unreadableErrors } from "../render/results.js";
import { reportBesides } from "../report.js";

const LOOKING = "Looking for unused sessions";

export default class Gc extends FleetCommand {
  static override summary = "Delete sessions past their TTL and clear dead servers and their folders.";
  static override description =
    "Keeps sessions that are in use, in a turn or under a lease, whatever their age. Asks for confirmation on a terminal. " +
    "Prints one summary line. It is safe to run from cron, and while another gc is running.";
  static override examples = ["<%= config.bin %> gc --ttl 24h", "<%= config.bin %> gc --ttl 7d --dry-run --json"];
  static override flags = {
    ttl: lifetimeFlag(
      "delete sessions that were not used for this long (default: session.ttl); a session's own TTL wins",
    ),
    "dry-run": Flags.boolean({ description: "show what would be deleted without changing anything" }),
    user: userFilter("delete only sessions of this user"),
    yes: yesFlag,
  };

  async run(): Promise<GcResult> {
    const { flags } = await this.parse(Gc);
    return await this.withFleet(async (fleet) => {
      const signal = this.interruptSignal();
      const dryRun = flags["dry-run"] === true;
      const request = { signal, ...given({ ttl: flags.ttl, user: flags.user }) };
      const isToAsk = !dryRun && isAsked({ json: this.jsonEnabled(), yes: flags.yes });
      const sessionIds = isToAsk ? await this.#agreedIds(fleet, request) : undefined;
      using progress = this.progress(dryRun ? LOOKING : "Deleting unused sessions");
      const { report: onProgress } = progress;
      const result = await fleet.sessions.gc({ ...request, ...given({ sessionIds }), dryRun, onProgress });
      this.log(renderGc(result));
      if (!this.jsonEnabled()) for (const error of unreadableErrors(result)) reportBesides(error);
      process.exitCode = exitCodeOfGc(result);
      return result;
    });
  }

  /** Asks about the sessions that gc would delete, and returns their ids. */
  async #agreedIds(fleet: Fleet, request: GcRequest): Promise<string[]> {
    using progress = this.progress(LOOKING, request.signal);
    const { deleted } = await fleet.sessions.gc({ ...request, dryRun: true });
    progress.end();
    if (deleted.length > 0) await confirm(askToDelete(deleted));
    return deleted.map(({ id }) => id);
  }
}
