import { Flags } from "@oclif/core";
import type { ServerView } from "../../servers/server.js";
import type { Stopped } from "../../servers/stop.js";
import { integerFlag, withRules } from "../flags/flags.js";
import { SelectionCommand, selectionArgs, selectionFlags } from "../flags/select-servers.js";
import { renderServers } from "../render/columns.js";

export default class Restart extends SelectionCommand {
  static override summary = "Stop servers as `stop` does, and start them again with the same home and port.";
  static override examples = [
    "<%= config.bin %> restart --user alice",
    "<%= config.bin %> restart --all --rolling --max-unavailable 2",
  ];
  static override strict = false;
  static override args = selectionArgs;
  static override flags = {
    ...selectionFlags,
    rolling: Flags.boolean({
      description:
        "replace one server after the other; start the new process before stopping the old one; end at the first failure",
      exclusive: ["force"],
    }),
    "max-unavailable": withRules(
      integerFlag("max-unavailable", "with --rolling: how many servers to replace at a time (default: 1)", [1, 1_000]),
      { dependsOn: ["rolling"] },
    ),
  };

  async run(): Promise<{ stopped: Stopped[]; servers: ServerView[]; away?: string[] }> {
    const { flags, argv } = await this.parse(Restart);
    const { rolling, force = false, "max-unavailable": maxUnavailable = 1 } = flags;
    return await this.onServers(
      rolling ? "Replacing servers" : "Restarting servers",
      [argv as string[], flags],
      async ({ servers }, ids, request) =>
        rolling
          ? await servers.restartRolling(ids, { ...request, maxUnavailable })
          : await servers.restart(ids, { ...request, force }),
      async ({ servers }, fleet) => renderServers(servers, await fleet.hosts.names()),
    );
  }
}
