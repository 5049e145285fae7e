import { Flags } from "@oclif/core";
import { countOf } from "../../base/values/text.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { ExportedSession } from "../../hosts/sessions/archives.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, given, leaseWaitFlag } from "../flags/flags.js";
import { sessionArg, wholeId } from "../flags/session.js";

export default class Export extends FleetCommand {
  static override summary = "Write a session with its history to one file.";
  static override description =
    "Only the owner may do that. Waits until no turn runs, and keeps new turns waiting during the export. The file is an " +
    "archive that import reads, in this fleet or in another one. It never replaces a file.";
  static override examples = ["<%= config.bin %> export SESSION --user alice --output review.tar.gz"];
  static override args = { session: sessionArg };
  static override flags = {
    user: actingUserFlag,
    output: Flags.string({ description: "path of the new file", helpValue: "FILE", required: true }),
    wait: leaseWaitFlag,
  };

  async run(): Promise<ExportedSession> {
    const { args, flags } = await this.parse(Export);
    const { user, output } = flags;
    const options = { user, output, signal: this.interruptSignal(), ...given({ wait: flags.wait }) };
    const write = async (fleet: Fleet) => {
      const id = await wholeId(fleet, args.session, { user, json: this.jsonEnabled(), reads: true });
      return await fleet.sessions.export(id, options);
    };
    return await this.act("Exporting the session", write, ({ file, bytes }) => `${file} (${countOf(bytes, "byte")})`);
  }
}
