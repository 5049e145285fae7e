import { Args, Flags } from "@oclif/core";
import type { Fleet } from "../fleet.js";
import { durationFlag, usage, userFlag } from "./flags.js";

/** How `stop` and `restart` name servers, and how long they wait for turns. */
export const selectionArgs = {
  server: Args.string({ description: "ids of servers, or unambiguous beginnings of them", ignoreStdin: true }),
};

export const selectionFlags = {
  user: userFlag,
  all: Flags.boolean({ description: "all servers" }),
  "drain-timeout": durationFlag("drain-timeout", "how long turns in flight may take to end (default 30s)"),
  force: Flags.boolean({ description: "kill at once, whatever is in flight" }),
};

export interface Selection {
  servers: string[];
  user: string | undefined;
  /** oclif leaves a boolean flag that was not given undefined, whatever its types say. */
  all: boolean | undefined;
}

/** The ids of the servers that were asked for. @throws FleetError `FLEET_USAGE_INVALID`, `FLEET_SERVER_NOT_FOUND`. */
export async function selectServers(fleet: Fleet, { servers, user, all }: Selection): Promise<string[]> {
  const ways = [servers.length > 0, user !== undefined, all === true].filter(Boolean);
  if (ways.length !== 1) throw usage("Give ids of servers, or --user USER, or --all.", ["copilotfleet ps"]);
  if (user !== undefined) return [(await fleet.serverOf(user)).id];
  if (all === true) return (await fleet.servers()).filter(({ state }) => state !== "stopped").map(({ id }) => id);
  const found = await Promise.all(servers.map(async (id) => (await fleet.server(id)).id));
  return [...new Set(found)];
}
