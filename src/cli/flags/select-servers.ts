import { Args, Flags, type Interfaces } from "@oclif/core";
import { quote } from "../../base/errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { StopRequest } from "../../hosts/options.js";
import { referenceOf } from "../../servers/server.js";
import type { Stopped } from "../../servers/stop.js";
import { FleetCommand } from "../base-command.js";
import { exitCodeOf } from "../render/results.js";
import { durationFlag, given, usage, userFilter } from "./flags.js";

/** The arguments and flags with which `stop` and `restart` select servers and wait for turns. */
export const selectionArgs = {
  server: Args.string({
    description: "ids of servers or users, or unique prefixes of server ids; with several hosts also ID@HOST",
    ignoreStdin: true,
  }),
};

export const selectionFlags = {
  user: userFilter("select the server of this user"),
  all: Flags.boolean({ description: "select all servers" }),
  "drain-timeout": durationFlag("drain-timeout", "how long to wait for turns in flight (default: drain.timeout)"),
  force: Flags.boolean({
    description: "kill the servers at once, even during a turn",
    exclusive: ["drain-timeout"],
  }),
};

type SelectionFlags = Interfaces.InferredFlags<typeof selectionFlags>;

/** The base of the commands that stop servers which the user selects. */
export abstract class SelectionCommand extends FleetCommand {
  /** Runs an operation on the selected servers, prints its result, and sets the exit code. */
  protected async onServers<Result extends { stopped: Stopped[] }>(
    what: string,
    [servers, flags]: [servers: string[], flags: SelectionFlags],
    operation: (fleet: Fleet, ids: string[], request: Omit<StopRequest, "force">) => Promise<Result>,
    textOf: (result: Result, fleet: Fleet) => string | Promise<string>,
  ): Promise<Result & { away?: string[] }> {
    return await this.withFleet(async (fleet) => {
      const { ids, away } = await selectServers(fleet, servers, flags);
      const signal = this.interruptSignal();
      using progress = this.progress(what);
      const drainTimeout = flags["drain-timeout"];
      const result = await operation(fleet, ids, { signal, onProgress: progress.report, ...given({ drainTimeout }) });
      this.log(await textOf(result, fleet));
      process.exitCode = exitCodeOf(result.stopped, away);
      if (away.length === 0) return result;
      const unchanged = `These servers are unchanged, because their hosts cannot be reached: ${away.join(", ")}`;
      process.stderr.write(`Warning: ${unchanged}\n`);
      return { ...result, away };
    });
  }
}

/**
 * Returns references of the selected servers. `ids` contains the servers that the command can reach. With `all`, `away`
 * contains the servers that may be running on hosts that cannot be reached.
 */
export async function selectServers(
  fleet: Fleet,
  servers: readonly string[],
  { user, all }: Partial<SelectionFlags> = {},
): Promise<{ ids: string[]; away: string[] }> {
  checkSelection(servers, { user, all });
  if (user !== undefined) return { ids: [referenceOf(await fleet.servers.ofUser(user))], away: [] };
  if (all) {
    const unstopped = (await fleet.servers.list()).filter(({ state }) => state !== "stopped");
    return {
      ids: unstopped.filter(({ away }) => !away).map(referenceOf),
      away: unstopped.filter(({ away, state }) => away && state !== "failed").map(referenceOf),
    };
  }
  const found = await Promise.all(servers.map(async (id) => referenceOf(await fleet.servers.get(id))));
  return { ids: [...new Set(found)], away: [] };
}

/** Refuses a command line that selects servers in several ways, or in none. */
export function checkSelection(
  servers: readonly string[],
  { user, all = false }: { user: string | undefined; all: boolean | undefined },
): void {
  const ways = [
    ...(servers.length > 0 ? [servers.map((id) => quote(id)).join(" ")] : []),
    ...(user === undefined ? [] : ["--user"]),
    ...(all ? ["--all"] : []),
  ];
  if (ways.length === 1) return;
  const fault = ways.length === 0 ? "SERVER is missing." : `${ways.join(" and ")} cannot be used together.`;
  throw usage(`${fault} Give ids of servers, or --user USER, or --all.`, ["copilotfleet ps # lists servers"]);
}
