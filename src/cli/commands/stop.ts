import type { Stopped } from "../../servers/stop.js";
import { FleetCommand } from "../base-command.js";
import { leftOut, selectionArgs, selectionFlags, selectServers, stopRequest } from "../flags/select-servers.js";
import { exitCodeOf, renderStopped } from "../render/results.js";

export default class Stop extends FleetCommand {
  static override summary = "Wait for turns in flight, then stop servers. Keeps their homes and sessions.";
  static override description =
    "Exits with 8 when a turn had to be cut, and lists the sessions. With --all, exits with 7 when a host with possibly " +
    "running servers could not be reached.";
  static override examples = ["<%= config.bin %> stop --user alice", "<%= config.bin %> stop --all --drain-timeout 2m"];
  static override strict = false;
  static override args = selectionArgs;
  static override flags = selectionFlags;

  async run(): Promise<{ stopped: Stopped[]; away?: string[] }> {
    const { flags, argv } = await this.parse(Stop);
    const request = stopRequest(flags);
    return await this.withFleet(async (fleet) => {
      const { ids, away } = await selectServers(fleet, argv as string[], flags);
      const signal = this.interruptSignal();
      using progress = this.progress("Stopping servers");
      const { stopped } = await fleet.servers.stop(ids, { ...request, signal, onProgress: progress.report });
      this.log(renderStopped(stopped));
      process.exitCode = exitCodeOf(stopped, away);
      return { stopped, ...leftOut(away) };
    });
  }
}
