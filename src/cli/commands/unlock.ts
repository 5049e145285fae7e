import { FleetCommand } from "../base-command.js";
import { leaseToken, unlockFlags } from "../flags/lease.js";
import { sessionArg, wholeId } from "../flags/session.js";

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
      const id = await wholeId(fleet, args.session, { json: this.jsonEnabled() });
      await fleet.leases.release(id, { token });
      this.log(id);
      return { unlocked: id };
    });
  }
}
