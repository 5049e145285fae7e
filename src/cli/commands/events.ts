import { Flags } from "@oclif/core";
import { EVENT_TYPES, type EventType, type FleetEvent } from "../../base/event.js";
import { printableJson } from "../../base/values/text.js";
import { FleetCommand } from "../base-command.js";
import { given, momentFlag, userFilter } from "../flags/flags.js";
import { renderEvent } from "../render/columns.js";

interface Listed {
  /** Not used with `--follow`, which prints each event as a separate JSON object on one line. */
  events: FleetEvent[];
}

export default class Events extends FleetCommand {
  static override summary = "Show the audit log: who did what to what, and why.";
  static override description =
    "Shows the events of all hosts by their time, those of the last day unless --since is given. With --follow and --json, " +
    "each event is one JSON object on a line.";
  static override examples = [
    "<%= config.bin %> events --since 1h",
    "<%= config.bin %> events --user alice --type signon.refused",
    "<%= config.bin %> events -f --json",
  ];
  static override flags = {
    follow: Flags.boolean({ char: "f", description: "keep printing new events until interrupted" }),
    since: momentFlag("since", "show only events since then: 10m, or a time in ISO 8601 (default: 24h)"),
    user: userFilter("show only what this user did, or what concerns this user"),
    type: Flags.custom<EventType>({
      description: "show only events of this kind",
      options: [...EVENT_TYPES],
      helpValue: "TYPE",
    })(),
  };

  async run(): Promise<Listed> {
    const { flags } = await this.parse(Events);
    const { follow, user, type, since = "24h" } = flags;
    const filter = given({ user, type, since });
    return await this.withFleet(async (fleet) => {
      if (!follow) {
        using progress = this.progress("Reading the audit log");
        const events = await fleet.events.list(filter);
        progress.end();
        for (const event of events) this.log(renderEvent(event));
        return { events };
      }
      const signal = this.interruptSignal();
      for await (const event of fleet.events.follow({ ...filter, signal })) {
        const line = this.jsonEnabled() ? printableJson(event) : renderEvent(event);
        process.stdout.write(`${line}\n`);
      }
      signal.throwIfAborted();
      return { events: [] };
    });
  }
}
