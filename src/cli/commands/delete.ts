import { Flags } from "@oclif/core";
import { isFleetError } from "../../base/errors.js";
import { FleetCommand } from "../base-command.js";
import { given, userFilter, yesFlag } from "../flags/flags.js";
import { meantAmong, sessionArg, withWholeIds } from "../flags/session.js";
import { askToDelete, confirm, isAsked } from "../prompt.js";

export default class Delete extends FleetCommand {
  static override aliases = ["rm"];
  static override summary = "Delete sessions permanently, with their history.";
  static override description =
    "Asks for confirmation on a terminal. The beginning of an id is enough there; a script and --yes need whole ids. With " +
    "--user, a session of another user counts as not found. Exits with 4 when a session is not found, but still deletes " +
    "the others.";
  static override examples = ["<%= config.bin %> delete SESSION", "<%= config.bin %> delete SESSION --user alice"];
  static override strict = false;
  static override args = { session: sessionArg };
  static override flags = {
    user: userFilter("refuse sessions of other users"),
    yes: yesFlag,
    "ignore-not-found": Flags.boolean({ description: "exit with 0 when a session is not found" }),
  };

  async run(): Promise<{ deleted: string[] }> {
    const { argv, flags } = await this.parse(Delete);
    const options = { user: flags.user, ignoreNotFound: flags["ignore-not-found"] === true };
    let ids = argv as string[];
    return await this.withFleet(async (fleet) => {
      const asks = isAsked({ json: this.jsonEnabled(), yes: flags.yes });
      if (asks) {
        const all = (await fleet.sessions.list(given({ user: flags.user }))).filter(
          ({ owner }) => flags.user === undefined || owner === flags.user,
        );
        ids = meantAmong(all, ids);
        const sessions = all.filter(({ id }) => ids.includes(id));
        if (sessions.length > 0) await confirm(askToDelete(sessions));
      }
      using _ = this.progress("Deleting sessions");
      try {
        const result = await fleet.sessions.delete(ids, options);
        this.#print(result.deleted);
        return result;
      } catch (error) {
        if (!isFleetError(error)) throw error;
        this.#print((error.outcome.deleted ?? []) as string[]);
        throw await withWholeIds(error, fleet, { ids, user: flags.user, isWhole: asks });
      }
    });
  }

  #print(deleted: readonly string[]): void {
    if (deleted.length > 0) this.log(deleted.join("\n"));
  }
}
