import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { sessionArg, userFlag } from "../cli/flags/flags.js";
import { isFleetError } from "../errors.js";

export default class Delete extends FleetCommand {
  static override summary = "Delete sessions permanently, with their history.";
  static override description =
    "With --user, a session of another user counts as not found. Exits with 4 when a session is not found, but still " +
    "deletes the others.";
  static override examples = ["<%= config.bin %> delete SESSION", "<%= config.bin %> delete SESSION --user alice"];
  static override strict = false;
  static override args = { session: sessionArg };
  static override flags = {
    user: userFlag,
    "ignore-not-found": Flags.boolean({ description: "exit with 0 when a session is not found" }),
  };

  async run(): Promise<{ deleted: string[] }> {
    const { argv, flags } = await this.parse(Delete);
    const options = { user: flags.user, ignoreNotFound: flags["ignore-not-found"] === true };
    return await this.withFleet(async (fleet) => {
      try {
        const result = await fleet.sessions.delete(argv as string[], options);
        this.#print(result.deleted);
        return result;
      } catch (error) {
        if (isFleetError(error)) this.#print((error.outcome.deleted ?? []) as string[]);
        throw error;
      }
    });
  }

  #print(deleted: readonly string[]): void {
    if (deleted.length > 0) this.log(deleted.join("\n"));
  }
}
