import { Args, Flags } from "@oclif/core";
import type { Fleet } from "../fleet.js";
import type { StopRequest } from "../fleet-options.js";
import { referenceOf } from "../pool/server.js";
import { durationFlag, usage, userFlag } from "./flags.js";

/** How `stop` and `restart` name servers, and how long they wait for turns. */
export const selectionArgs = {
  server: Args.string({
    description: "ids of servers or users, or unambiguous beginnings of a server's id; on several hosts also ID@HOST",
    ignoreStdin: true,
  }),
};

export const selectionFlags = {
  user: userFlag,
  all: Flags.boolean({ description: "all servers" }),
  "drain-timeout": durationFlag("drain-timeout", "how long turns in flight may take to end (default 30s)"),
  force: Flags.boolean({ description: "kill at once, whatever is in flight" }),
};

/** How `stop` and `restart` wait for turns. @throws FleetError `FLEET_USAGE_INVALID` for flags that contradict each other. */
export function stopRequest(flags: {
  force: boolean | undefined;
  "drain-timeout": number | undefined;
}): Pick<StopRequest, "force" | "drainTimeoutMs"> {
  const { force = false, "drain-timeout": drainTimeoutMs } = flags;
  if (drainTimeoutMs === undefined) return { force };
  if (force) throw usage("--force and --drain-timeout cannot be used together: --force does not wait for turns.");
  return { force, drainTimeoutMs };
}

export interface Selection {
  servers: string[];
  user: string | undefined;
  /** oclif leaves a boolean flag that was not given undefined, whatever its types say. */
  all: boolean | undefined;
}

export interface Selected {
  /** What names the servers that can be asked. */
  ids: string[];
  /** With `all`: what names those that may run on hosts that cannot be asked. */
  away: string[];
}

/** The servers that were asked for, among all hosts. @throws FleetError `FLEET_USAGE_INVALID`, `FLEET_SERVER_NOT_FOUND`. */
export async function selectServers(fleet: Fleet, { servers, user, all }: Selection): Promise<Selected> {
  const ways = [servers.length > 0, user !== undefined, all === true].filter(Boolean);
  if (ways.length !== 1) throw usage("Give ids of servers, or --user USER, or --all.", ["copilotfleet ps"]);
  if (user !== undefined) return { ids: [referenceOf(await fleet.serverOf(user))], away: [] };
  if (all === true) {
    const unstopped = (await fleet.servers()).filter(({ state }) => state !== "stopped");
    return {
      ids: unstopped.filter(({ away }) => !away).map(referenceOf),
      away: unstopped.filter(({ away, state }) => away && state !== "failed").map(referenceOf),
    };
  }
  const found = await Promise.all(servers.map(async (id) => referenceOf(await fleet.server(id))));
  return { ids: [...new Set(found)], away: [] };
}

/** What is left undone on hosts that are away shows in the exit code, too, and in `--json` where there is any. */
export function leftOut(away: readonly string[]): { away?: string[] } {
  if (away.length === 0) return {};
  process.stderr.write(`Warning: Left as they are, since their hosts cannot be asked: ${away.join(", ")}\n`);
  return { away: [...away] };
}
