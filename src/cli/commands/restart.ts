import { Flags } from "@oclif/core";
import type { ServerView } from "../../servers/server.js";
import type { Stopped } from "../../servers/stop.js";
import { FleetCommand } from "../base-command.js";
import { integerFlag, withRules } from "../flags/flags.js";
import { leftOut, selectionArgs, selectionFlags, selectServers, stopRequest } from "../flags/select-servers.js";
import { renderServers } from "../render/columns.js";
import { exitCodeOf } from "../render/results.js";

export default class Restart extends FleetCommand {
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
    const { force = false, ...drain } = stopRequest(flags);
    return await this.withFleet(async (fleet) => {
      const { ids, away } = await selectServers(fleet, argv as string[], flags);
      const signal = this.interruptSignal();
      using progress = this.progress(flags.rolling ? "Replacing servers" : "Restarting servers");
      const request = { ...drain, signal, onProgress: progress.report };
      const result = flags.rolling
        ? await fleet.servers.restartRolling(ids, { ...request, maxUnavailable: flags["max-unavailable"] ?? 1 })
        : await fleet.servers.restart(ids, { ...request, force });
      this.log(renderServers(result.servers, await fleet.hosts.names()));
      process.exitCode = exitCodeOf(result.stopped, away);
      return { ...result, ...leftOut(away) };
    });
  }
}
