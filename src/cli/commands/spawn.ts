import { Flags } from "@oclif/core";
import type { ServerView } from "../../servers/server.js";
import { FleetCommand } from "../base-command.js";
import { tokenSourceFromFlags } from "../flags/door.js";
import {
  actingUserFlagUnless,
  durationFlag,
  folderFlag,
  given,
  integerFlag,
  usage,
  variableFlag,
  withRules,
} from "../flags/flags.js";
import { renderServers } from "../render/columns.js";

interface Spawned {
  server: ServerView;
  /** False if the server already ran. */
  created: boolean;
}

interface SpawnedMany {
  servers: ServerView[];
}

export default class Spawn extends FleetCommand {
  static override aliases = ["start"];
  static override summary = "Start a user's own Copilot server, or show it if it is already running.";
  static override examples = [
    "<%= config.bin %> spawn --user alice",
    "<%= config.bin %> spawn --user load --count 16",
    "<%= config.bin %> spawn --user alice --token-env ALICE_GITHUB_TOKEN --json",
  ];
  static override flags = {
    user: actingUserFlagUnless(["shared", "count"]),
    count: withRules(
      integerFlag("count", "start the servers of the users USER-1 to USER-N; 1 starts the server of USER", [1, 1_000]),
      { dependsOn: ["user"] },
    ),
    shared: Flags.boolean({ description: "start one more shared server", exclusive: ["user", "count"] }),
    "token-env": variableFlag("environment variable that holds the GitHub token"),
    "token-file": Flags.string({
      description: "file (mode 0600) that holds the GitHub token",
      helpValue: "FILE",
      exclusive: ["token-env"],
    }),
    cwd: folderFlag("cwd", "working folder of the server"),
    wait: durationFlag("wait", "how long to wait until the server answers (default: 30s)"),
  };

  async run(): Promise<Spawned | SpawnedMany> {
    const { flags } = await this.parse(Spawn);
    if (flags.user === undefined && !flags.shared)
      throw usage("--user or --shared is missing.", [
        "copilotfleet spawn --user USER # starts the server of a user",
        "copilotfleet spawn --shared # starts one more shared server",
      ]);
    const about = { example: "GITHUB_TOKEN", content: "the user's GitHub token" };
    const token = tokenSourceFromFlags(flags["token-env"], flags["token-file"], about);
    const request = given({ token, cwd: flags.cwd, wait: flags.wait });
    return await this.withFleet(async (fleet) => {
      if (flags.count !== undefined) {
        const user = flags.user ?? "";
        const numbered = Array.from({ length: flags.count }, (_, index) => `${user}-${index + 1}`);
        const users = flags.count === 1 ? [user] : numbered;
        using progress = this.progress("Starting servers");
        const result = await fleet.servers.spawnMany(users, { ...request, onProgress: progress.report });
        this.log(renderServers(result.servers, await fleet.hosts.names()));
        return result;
      }
      using _ = this.progress(
        flags.user === undefined ? "Starting a shared server" : `Starting the server of ${flags.user}`,
      );
      const result =
        flags.user === undefined
          ? await fleet.servers.spawnShared(request)
          : await fleet.servers.spawn(flags.user, request);
      this.log(renderServers([result.server], await fleet.hosts.names()));
      return result;
    });
  }
}
