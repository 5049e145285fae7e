import { Flags } from "@oclif/core";
import type { PurgeReceipt } from "../../../hosts/purge.js";
import { FleetCommand } from "../../base-command.js";
import { userArg, yesFlag } from "../../flags/flags.js";
import { askToPurge, confirm, isAsked } from "../../prompt.js";
import { renderReceipt } from "../../render/columns.js";

export default class UserPurge extends FleetCommand {
  static override summary = "Erase all data of a user on all hosts, and print a receipt.";
  static override description =
    "Erases sessions with their histories, homes, tokens, placements, leases and logs. In usage and events, a pseudonym " +
    "replaces the name. Stops the user's servers at once. Asks for confirmation on a terminal. Until it is complete, " +
    "nothing new of the user begins. If it is interrupted, run it again; gc and serve finish it, too. " +
    "Exits with 4 if the fleet knows nothing about the user.";
  static override examples = [
    "<%= config.bin %> user purge alice --dry-run",
    "<%= config.bin %> user purge alice --yes",
  ];
  static override args = { user: userArg };
  static override flags = {
    yes: yesFlag,
    "dry-run": Flags.boolean({ description: "show what would be erased without changing anything" }),
    "ignore-not-found": Flags.boolean({ description: "exit with 0 if the fleet knows nothing about the user" }),
  };

  async run(): Promise<PurgeReceipt> {
    const { args, flags } = await this.parse(UserPurge);
    const { user } = args;
    const dryRun = flags["dry-run"] === true;
    const options = { ignoreNotFound: flags["ignore-not-found"] === true };
    return await this.withFleet(async (fleet) => {
      const signal = this.interruptSignal();
      if (!dryRun && isAsked({ json: this.jsonEnabled(), yes: flags.yes })) {
        await confirm(askToPurge(await fleet.users.purge(user, { ...options, dryRun: true, signal })));
      }
      using _ = this.progress("Erasing the data of the user");
      const receipt = await fleet.users.purge(user, { ...options, dryRun, signal });
      this.log(renderReceipt(receipt));
      return receipt;
    });
  }
}
