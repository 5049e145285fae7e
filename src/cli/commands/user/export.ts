import { Flags } from "@oclif/core";
import { countOf } from "../../../base/values/text.js";
import type { ExportedUser } from "../../../fleet/groups/users.js";
import { FleetCommand } from "../../base-command.js";
import { userArg } from "../../flags/flags.js";

export default class UserExport extends FleetCommand {
  static override summary = "Write all data of a user to a folder.";
  static override description =
    "Writes each session of the user as an archive that import reads, and everything else as JSON. It contains no token. " +
    "Refuses a folder that is not empty.";
  static override examples = ["<%= config.bin %> user export alice --output alice-data"];
  static override args = { user: userArg };
  static override flags = {
    output: Flags.string({ description: "path of the folder, new or empty", helpValue: "DIR", required: true }),
  };

  async run(): Promise<ExportedUser> {
    const { args, flags } = await this.parse(UserExport);
    return await this.withFleet(async (fleet) => {
      const signal = this.interruptSignal();
      using _ = this.progress("Exporting the data of the user");
      const exported = await fleet.users.export(args.user, { output: flags.output, signal });
      this.log(`${exported.folder} (${countOf(exported.sessions.length, "session")})`);
      for (const { session, why } of exported.remains) this.log(`Not exported: ${session}: ${why}`);
      return exported;
    });
  }
}
