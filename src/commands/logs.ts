import { Args, Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { integerFlag, usage } from "../cli/flags/flags.js";
import { userFilter } from "../cli/flags/user.js";
import { referenceOf } from "../pool/server.js";

export default class Logs extends FleetCommand {
  static override summary = "Show the log of a server.";
  static override examples = [
    "<%= config.bin %> logs alice-2bd806c97f0e -n 20",
    "<%= config.bin %> logs --user alice -f",
  ];
  static override args = {
    server: Args.string({
      description: "id of the server or of its user, or a unique prefix of the server's id",
      ignoreStdin: true,
    }),
  };
  static override flags = {
    user: userFilter("show the log of this user's server"),
    follow: Flags.boolean({ char: "f", description: "keep printing new lines until interrupted" }),
    lines: integerFlag("lines", "how many of the last lines to print first (default: 100)", [0, 1_000_000], "n"),
  };

  async run(): Promise<{ server: string; log: string; lines: string[] }> {
    const { args, flags } = await this.parse(Logs);
    if ((args.server === undefined) === (flags.user === undefined))
      throw usage("Give the id of a server or --user USER.", ["copilotfleet ps"]);
    return await this.withFleet(async (fleet) => {
      const wanted =
        flags.user === undefined ? (args.server ?? "") : referenceOf(await fleet.servers.ofUser(flags.user));
      // Ask for the signal before printing the first line, because a user may interrupt from then on.
      const signal = flags.follow && !this.jsonEnabled() ? this.interruptSignal() : undefined;
      const { server, log, lines, at } = await fleet.servers.logEnd(wanted, { lines: flags.lines ?? 100 });
      if (lines.length > 0) this.log(lines.join("\n"));
      if (signal !== undefined) {
        for await (const bytes of fleet.servers.followLog(wanted, { at, signal })) process.stdout.write(bytes);
        signal.throwIfAborted();
      }
      return { server, log, lines };
    });
  }
}
