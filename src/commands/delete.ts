import { FleetCommand } from "../cli/base-command.js";
import { sessionArg, userFlag } from "../cli/flags.js";

export default class Delete extends FleetCommand {
  static override summary = "Delete sessions for good, with their history. Deleting what is gone is success.";
  static override examples = ["<%= config.bin %> delete SESSION", "<%= config.bin %> delete SESSION --user alice"];
  static override strict = false;
  static override args = { session: sessionArg };
  static override flags = { user: userFlag };

  async run(): Promise<{ deleted: string[] }> {
    const { argv, flags } = await this.parse(Delete);
    return await this.withFleet(async (fleet) => {
      const deleted = await fleet.deleteSessions(argv as string[], flags.user);
      this.log(deleted.join("\n"));
      return { deleted };
    });
  }
}
