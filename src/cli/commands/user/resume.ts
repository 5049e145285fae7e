import { printable } from "../../../base/values/text.js";
import type { Fleet } from "../../../fleet/fleet.js";
import { FleetCommand } from "../../base-command.js";
import { userArg } from "../../flags/flags.js";

export default class UserResume extends FleetCommand {
  static override summary = "End the suspension of a user.";
  static override description =
    "The user's credentials are valid again. The user's servers start with the next use. Exits with 4 if the user is not " +
    "suspended.";
  static override examples = ["<%= config.bin %> user resume alice"];
  static override args = { user: userArg };

  async run(): Promise<{ user: string }> {
    const { args } = await this.parse(UserResume);
    const resume = async (fleet: Fleet) => await fleet.users.resume(args.user);
    return await this.act("Ending the suspension", resume, ({ user }) => `${printable(user)} is no longer suspended.`);
  }
}
