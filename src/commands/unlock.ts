import { FleetCommand } from "../cli/base-command.js";
import { sessionArg } from "../cli/flags/flags.js";
import { leaseToken, unlockFlags } from "../cli/flags/lease.js";

export default class Unlock extends FleetCommand {
  static override summary = "Release the lease on a session. Needs the token that lock printed.";
  static override description =
    "Exits with 5 when the token does not hold the lease, for example because the lease has expired.";
  static override examples = [
    '<%= config.bin %> unlock SESSION --token "$token"',
    "<%= config.bin %> unlock SESSION --token-env TOKEN",
  ];
  static override args = { session: sessionArg };
  static override flags = unlockFlags;

  async run(): Promise<{ unlocked: string }> {
    const { args, flags } = await this.parse(Unlock);
    const token = leaseToken(flags);
    return await this.withFleet(async (fleet) => {
      using _ = this.progress("Releasing the lease");
      await fleet.leases.release(args.session, { token });
      this.log(args.session);
      return { unlocked: args.session };
    });
  }
}
