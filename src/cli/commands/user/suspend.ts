import { parseLabel } from "../../../base/values/names.js";
import { countOf, printable } from "../../../base/values/text.js";
import type { SuspendedUser } from "../../../hosts/gather.js";
import { FleetCommand } from "../../base-command.js";
import { given, textFlag, userArg } from "../../flags/flags.js";

export default class UserSuspend extends FleetCommand {
  static override summary = "Refuse a user at every entry point, whatever the user's credential, until user resume.";
  static override description =
    "The user's turns and connections end within seconds, on all hosts, and the user's own servers stop. Sessions, tokens " +
    "and other data stay. A user whom the fleet does not know can be suspended, too.";
  static override examples = ['<%= config.bin %> user suspend alice --reason "lost laptop"'];
  static override args = { user: userArg };
  static override flags = {
    reason: textFlag("reason", "why, for other operators; user list -o wide shows it", "TEXT", parseLabel),
  };

  async run(): Promise<SuspendedUser> {
    const { args, flags } = await this.parse(UserSuspend);
    return await this.withFleet(async (fleet) => {
      using _ = this.progress("Suspending the user");
      const suspended = await fleet.users.suspend(args.user, given({ reason: flags.reason }));
      const { user, since, known, stopped } = suspended;
      this.log(`${printable(user)} is suspended since ${since}. ${countOf(stopped.length, "server")} stopped.`);
      if (!known) this.log("The user has no session, server or token.");
      return suspended;
    });
  }
}
