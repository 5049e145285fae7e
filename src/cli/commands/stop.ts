import type { Stopped } from "../../servers/stop.js";
import { SelectionCommand, selectionArgs, selectionFlags } from "../flags/select-servers.js";
import { renderStopped } from "../render/results.js";

export default class Stop extends SelectionCommand {
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
    const { force } = flags;
    return await this.onServers(
      "Stopping servers",
      [argv as string[], flags],
      async (fleet, ids, request) => ({ stopped: (await fleet.servers.stop(ids, { ...request, force })).stopped }),
      ({ stopped }) => renderStopped(stopped),
    );
  }
}
