import { FleetCommand } from "../cli/base-command.js";
import { selectionArgs, selectionFlags, selectServers } from "../cli/select-servers.js";
import { renderServers } from "../cli/servers.js";
import { exitCodeOf } from "../cli/stopped.js";
import type { ServerView } from "../pool/server.js";
import type { Stopped } from "../pool/stopping.js";

export default class Restart extends FleetCommand {
  static override summary = "Stop servers like `stop` does, and start them again on the same home and port.";
  static override examples = ["<%= config.bin %> restart --user alice", "<%= config.bin %> restart --all"];
  static override strict = false;
  static override args = selectionArgs;
  static override flags = selectionFlags;

  async run(): Promise<{ stopped: Stopped[]; servers: ServerView[] }> {
    const { flags, argv } = await this.parse(Restart);
    return await this.withFleet(async (fleet) => {
      const ids = await selectServers(fleet, { servers: argv as string[], user: flags.user, all: flags.all });
      const result = await fleet.restart(ids, {
        force: flags.force,
        signal: this.interruptSignal(),
        ...(flags["drain-timeout"] === undefined ? {} : { drainTimeoutMs: flags["drain-timeout"] }),
      });
      this.log(renderServers(result.servers));
      process.exitCode = exitCodeOf(result.stopped);
      return result;
    });
  }
}
