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
    const options = { output: flags.output, signal: this.interruptSignal() };
    return await this.act(
      "Exporting the data of the user",
      async (fleet) => await fleet.users.export(args.user, options),
      ({ folder, sessions, remains }) => {
        const left = remains.map(({ session, why }) => `Not exported: ${session}: ${why}`);
        return [`${folder} (${countOf(sessions.length, "session")})`, ...left].join("\n");
      },
    );
  }
}
