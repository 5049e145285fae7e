import { Args } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { renderDescription } from "../cli/render/lists/describe.js";
import type { Description } from "../peers/descriptions.js";

export default class Describe extends FleetCommand {
  static override aliases = ["inspect"];
  static override summary = "Show everything about one server, session or user, and what to type next.";
  static override description =
    "If a server, a session or a user have the same id, write server/ID, session/ID or user/ID. The output contains no " +
    "secrets.";
  static override examples = [
    "<%= config.bin %> describe alice",
    "<%= config.bin %> describe alice-2bd806c97f0e",
    "<%= config.bin %> describe session/notes --json",
  ];
  static override args = {
    name: Args.string({
      description: "id of a server, session or user, or the beginning of a server's or session's id",
      required: true,
      ignoreStdin: true,
    }),
  };

  async run(): Promise<Description> {
    const { args } = await this.parse(Describe);
    return await this.withFleet(async (fleet) => {
      using _ = this.progress("Looking it up");
      const description = await fleet.descriptions.get(args.name);
      this.log(renderDescription(description));
      return description;
    });
  }
}
