import { Args } from "@oclif/core";
import type { SessionView } from "../../sessions/view.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, given, newSessionIdFlag } from "../flags/flags.js";

export default class Import extends FleetCommand {
  static override summary = "Create a session from a file that export wrote, and print its id.";
  static override description =
    "The session belongs to the given user, and its next turn knows its history. Checks the whole file before it writes " +
    "anything.";
  static override examples = [
    "<%= config.bin %> import review.tar.gz --user bob",
    "<%= config.bin %> import review.tar.gz --user bob --id review-2",
  ];
  static override args = {
    file: Args.string({ description: "path of the archive", required: true, ignoreStdin: true }),
  };
  static override flags = {
    user: actingUserFlag,
    id: newSessionIdFlag("id of the new session (default: the id in the archive)"),
  };

  async run(): Promise<{ session: SessionView }> {
    const { args, flags } = await this.parse(Import);
    const options = { user: flags.user, signal: this.interruptSignal(), ...given({ sessionId: flags.id }) };
    return await this.act(
      "Importing the session",
      async (fleet) => ({ session: await fleet.sessions.import(args.file, options) }),
      ({ session }) => session.id,
    );
  }
}
