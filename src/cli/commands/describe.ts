import { Args } from "@oclif/core";
import { quote } from "../../base/errors.js";
import type { Description } from "../../hosts/overview.js";
import { FleetCommand } from "../base-command.js";
import { titleFlagFor, usage } from "../flags/flags.js";
import { renderDescription } from "../render/describe.js";

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
    '<%= config.bin %> describe notes --title "Notes of the review"',
  ];
  static override args = {
    name: Args.string({
      description: "id of a server, session or user, or the beginning of a server's or session's id",
      required: true,
      ignoreStdin: true,
    }),
  };

  static override flags = { title: titleFlagFor("a new title for the session") };

  async run(): Promise<Description> {
    const { args, flags } = await this.parse(Describe);
    return await this.withFleet(async (fleet) => {
      using _ = this.progress("Looking it up");
      const description = await fleet.descriptions.get(args.name);
      if (flags.title !== undefined) {
        if (description.kind !== "session")
          throw usage(`--title is for sessions, and ${quote(args.name)} is a ${description.kind}.`, [
            "copilotfleet list",
          ]);
        const { id, owner } = description.session;
        description.session = await fleet.sessions.update(id, { user: owner, title: flags.title });
      }
      this.log(renderDescription(description));
      return description;
    });
  }
}
