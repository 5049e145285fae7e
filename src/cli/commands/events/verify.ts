import { ERRORS } from "../../../base/errors.js";
import { countOf } from "../../../base/values/text.js";
import type { EventsVerified } from "../../../hosts/all-events.js";
import { FleetCommand } from "../../base-command.js";

export default class EventsVerify extends FleetCommand {
  static override summary = "Verify the audit log of all hosts.";
  static override description =
    "Finds lines that were changed, removed or moved, also at the end of a log, and names the first such place of each " +
    "log. Exits with 7 if there is one, or if a host does not answer.";
  static override examples = ["<%= config.bin %> events verify", "<%= config.bin %> events verify --json"];

  async run(): Promise<EventsVerified> {
    await this.parse(EventsVerify);
    return await this.withFleet(async (fleet) => {
      using progress = this.progress("Verifying the audit log");
      const verified = await fleet.events.verify();
      progress.end();
      const { ok, events, breaks, missing } = verified;
      for (const { host, problem } of breaks) this.log(`${host === null ? "" : `Host ${host}: `}${problem}.`);
      for (const host of missing) this.log(`Host ${host} does not answer, so its log was not verified.`);
      if (breaks.length === 0) this.log(`${countOf(events, "event")}, and no line was changed, removed or moved.`);
      if (!ok) process.exitCode = ERRORS.FLEET_STATE_CORRUPT.exit;
      return verified;
    });
  }
}
