import { Args } from "@oclif/core";
import { parseDuration } from "../../../base/values/measures.js";
import type { Fleet } from "../../../fleet/fleet.js";
import type { RotatedToken } from "../../../identity/tokens.js";
import { FleetCommand } from "../../base-command.js";
import { given, textFlag } from "../../flags/flags.js";

export default class TokenRotate extends FleetCommand {
  static override summary = "Replace a token by a new one, and end the old one after a while.";
  static override description =
    "Prints the new token once. It has the user, the scopes, the session, the label and the lifetime of the old one. Both " +
    "are valid during --overlap, but the old one never longer than before.";
  static override examples = [
    "<%= config.bin %> token rotate 0123456789abcdef",
    "<%= config.bin %> token rotate 0123456789abcdef --overlap 1h --json",
  ];
  static override args = {
    token: Args.string({ description: "id of the token to replace", required: true, ignoreStdin: true }),
  };
  static override flags = {
    overlap: textFlag(
      "overlap",
      "how long the old token stays valid; 0 ends it at once (default: 24h)",
      "DURATION",
      (text, name) => parseDuration(text, { name, orZero: true }),
    ),
  };

  async run(): Promise<RotatedToken> {
    const { args, flags } = await this.parse(TokenRotate);
    const rotate = async (fleet: Fleet) => await fleet.tokens.rotate(args.token, given({ overlap: flags.overlap }));
    return await this.act("Rotating the token", rotate, ({ token }) => token);
  }
}
