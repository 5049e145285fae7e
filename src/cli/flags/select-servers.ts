import { Args, Flags, type Interfaces } from "@oclif/core";
import { quote } from "../../base/errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { StopRequest } from "../../hosts/options.js";
import { referenceOf } from "../../servers/server.js";
import { durationFlag, usage, userFilter } from "./flags.js";

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
  force: Flags.boolean({ description: "kill the servers at once, even during a turn" }),
};

type SelectionFlags = Interfaces.InferredFlags<typeof selectionFlags>;

export function stopRequest(
  flags: Pick<SelectionFlags, "force" | "drain-timeout">,
): Pick<StopRequest, "force" | "drainTimeout"> {
  const { force = false, "drain-timeout": drainTimeout } = flags;
  if (drainTimeout === undefined) return { force };
  if (force)
    throw usage(
      "--force and --drain-timeout cannot be used together, because --force does not wait for running turns.",
      ["Leave out --force to wait for running turns, or leave out --drain-timeout."],
    );
  return { force, drainTimeout };
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

const LIST = "copilotfleet ps # lists servers";

/** Refuses a command line that selects servers in several ways, or in none. The error for `logs` asks for one id. */
export function checkSelection(
  servers: readonly string[],
  { user, all = false }: { user: string | undefined; all: boolean | undefined },
  command?: "logs",
): void {
  const ways = [
    servers.length > 0 ? servers.map((id) => quote(id)).join(" ") : [],
    user === undefined ? [] : "--user",
    all ? "--all" : [],
  ].flat();
  if (ways.length === 1) return;
  const what = command === "logs" ? "the id of a server" : "ids of servers";
  if (ways.length === 0) throw usage(`SERVER is missing. Give ${what}, or --user USER, or --all.`, [LIST]);
  const only =
    servers.length === 0 ? [] : ([`Leave out ${ways.slice(1).join(" and ")}, or leave out the id.`] as const);
  throw usage(`${ways.join(" and ")} cannot be used together. Give ${what}, or --user USER, or --all.`, [
    ...only,
    LIST,
  ]);
}

/** Returns references of the servers whose logs to show. With `all`, leaves out servers on unreachable hosts. */
export async function logReferences(
  fleet: Fleet,
  { server, user, all }: { server: string | undefined; user: string | undefined; all: boolean },
): Promise<string[]> {
  if (user !== undefined) return [referenceOf(await fleet.servers.ofUser(user))];
  if (!all) return [server ?? ""];
  return (await fleet.servers.list()).filter(({ away }) => !away).map(referenceOf);
}

/** Warns about servers on hosts that cannot be reached. Returns the field of the `--json` output that lists them. */
export function leftOut(away: readonly string[]): { away?: string[] } {
  if (away.length === 0) return {};
  process.stderr.write(
    `Warning: These servers are unchanged, because their hosts cannot be reached: ${away.join(", ")}\n`,
  );
  return { away: [...away] };
}

/** Refuses a `spawn` unless it starts the server of one user, the servers of `count` users, or one shared server. */
export function checkSpawn({
  user,
  count,
  shared,
}: {
  user: string | undefined;
  count: number | undefined;
  shared: boolean;
}): void {
  if (count !== undefined && (shared || user === undefined)) {
    const together =
      "--shared and --count cannot be used together, because --count starts the servers of several users.";
    throw usage(shared ? together : "--count needs --user USER.", [
      `copilotfleet spawn --user USER --count ${count} # ${count === 1 ? "starts the server of USER" : `starts ${count} servers, for the users USER-1 ${count === 2 ? "and" : "to"} USER-${count}`}`,
      ...(shared ? (["copilotfleet spawn --shared # starts one more shared server"] as const) : []),
    ]);
  }
  if ((user === undefined) === !shared)
    throw usage(shared ? "--user and --shared cannot be used together." : "--user or --shared is missing.", [
      "copilotfleet spawn --user USER # starts the server of a user",
      "copilotfleet spawn --shared # starts one more shared server",
    ]);
}
