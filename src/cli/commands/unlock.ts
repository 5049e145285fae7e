import { Flags } from "@oclif/core";
import { quote } from "../../base/errors.js";
import { blankFault } from "../../base/values/text.js";
import type { Fleet } from "../../fleet/fleet.js";
import { FleetCommand } from "../base-command.js";
import { readVariable, usage, variableFlag } from "../flags/flags.js";
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
  static override flags = {
    token: Flags.string({
      description: "lease token that lock printed",
      helpValue: "TOKEN",
      exactlyOne: ["token", "token-env"],
      parse: async (token) => {
        // The message does not show the token, because it is a secret while its lease lasts.
        if (blankFault(token) === null) return token.trim();
        throw usage(`--token is ${quote(token)}, ${blankFault(token)}. Allowed: the token that lock printed`, [
          "copilotfleet unlock SESSION --token TOKEN",
        ]);
      },
    }),
    "token-env": variableFlag("environment variable that holds the lease token"),
  };

  async run(): Promise<{ unlocked: string }> {
    const { args, flags } = await this.parse(Unlock);
    const about = { example: "LEASE_TOKEN", content: "the token that lock printed" };
    const token = flags.token ?? readVariable("--token-env", flags["token-env"] ?? "", about);
    const release = async (fleet: Fleet) => {
      const unlocked = await wholeId(fleet, args.session, { json: this.jsonEnabled() });
      await fleet.leases.release(unlocked, { token });
      return { unlocked };
    };
    return await this.act("Releasing the lease", release, ({ unlocked }) => unlocked);
  }
}
