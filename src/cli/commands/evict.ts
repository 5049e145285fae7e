import type { EvictionResult } from "../../sessions/memory/eviction.js";
import { sessionsNotFound } from "../../sessions/problems.js";
import { FleetCommand } from "../base-command.js";
import { integerFlag, usage } from "../flags/flags.js";
import { optionalSessionArg, wholeIds } from "../flags/session.js";
import { renderTable, SESSION } from "../render/table.js";

export default class Evict extends FleetCommand {
  static override summary = "Unload idle sessions from the servers' memory. Keeps their state.";
  static override description =
    "Skips a session that is in a turn, under a lease or just being opened, and shows the reason. " +
    "Exits with 4 when a session is not found, but still unloads the others.";
  static override examples = ["<%= config.bin %> evict SESSION", "<%= config.bin %> evict --max 10"];
  static override strict = false;
  static override args = { session: optionalSessionArg };
  static override flags = {
    max: integerFlag("max", "unload the least recently used sessions until at most N are in memory", [0, 1_000_000]),
  };

  async run(): Promise<EvictionResult> {
    const { argv, flags } = await this.parse(Evict);
    const given = argv as string[];
    if (given.length > 0 === (flags.max !== undefined)) {
      throw usage(
        given.length > 0 ? "Ids of sessions and --max cannot be used together." : "SESSION or --max is missing.",
        [
          "copilotfleet list # lists sessions",
          "copilotfleet evict SESSION # unloads one session",
          "copilotfleet evict --max N # unloads sessions until at most N are in memory",
        ],
      );
    }
    return await this.withFleet(async (fleet) => {
      using progress = this.progress("Unloading sessions");
      const json = this.jsonEnabled();
      const { ids, unknown } = await wholeIds(fleet, given, { json });
      const what = flags.max === undefined ? { ids } : { max: flags.max };
      const { evicted, skipped } = await fleet.sessions.evict(what, { onProgress: progress.report });
      const missing = unknown.map((id) => ({ id, reason: "not found" as const }));
      const result: EvictionResult = { evicted, skipped: [...skipped, ...missing] };
      const rows = [
        ...result.evicted.map((id) => [id, "evicted"]),
        ...result.skipped.map(({ id, reason }) => [id, `skipped: ${reason}`]),
      ];
      this.log(
        rows.length === 0 ? "Nothing to evict." : renderTable([SESSION, { heading: "OUTCOME", cut: "end" }], rows),
      );
      const notFound = result.skipped.filter(({ reason }) => reason === "not found").map(({ id }) => id);
      if (notFound.length > 0) throw sessionsNotFound(notFound, { ...result });
      return result;
    });
  }
}
