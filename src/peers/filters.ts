import type { Config } from "../config/schema.js";
import { FleetError, option, quote } from "../errors.js";
import type { ServerFilter, SessionFilter } from "../fleet/options.js";
import type { ServerView } from "../pool/server.js";
import { ownHostName } from "../runtime/files/host-note.js";
import type { SessionView } from "../sessions/view.js";
import type { FleetHosts } from "./fleet-hosts.js";

export interface FilterContext {
  hosts: FleetHosts;
  config: Config;
  stateRoot: string;
}

/** Returns the servers that match. @throws FleetError `FLEET_USAGE_INVALID` when the fleet does not have `host`. */
export async function filterServers(
  context: FilterContext,
  servers: readonly ServerView[],
  { user, state, host }: ServerFilter,
): Promise<ServerView[]> {
  const isOn = await placeFilter(context, host);
  return servers.filter(
    (server) => isWanted(user, server.user) && isWanted(state, server.state) && isOn(server.hostName),
  );
}

/**
 * Returns the sessions that match. The caller has already filtered them by user.
 *
 * @throws FleetError as {@link filterServers}.
 */
export async function filterSessions(
  context: FilterContext,
  sessions: readonly SessionView[],
  { state, purpose, host, model }: Omit<SessionFilter, "user">,
): Promise<SessionView[]> {
  const isOn = await placeFilter(context, host);
  return sessions.filter(
    (session) =>
      isWanted(state, session.state) &&
      isWanted(purpose, session.purpose) &&
      isWanted(model, session.model ?? context.config.session.model) &&
      isOn(session.host),
  );
}

function isWanted(wanted: string | undefined, value: string | null): boolean {
  return wanted === undefined || wanted === value;
}

/** Returns a function that checks the host name of a server or a session. In a fleet on one host, that name is null. */
async function placeFilter({ hosts, config, stateRoot }: FilterContext, wanted: string | undefined) {
  if (wanted === undefined) return () => true;
  const own = hosts.own.name ?? ownHostName(config, stateRoot);
  const names = hosts.own.name === null ? [own] : await hosts.names();
  if (names.includes(wanted)) return (host: string | null) => (host ?? own) === wanted;
  const message = `${option("host")} ${quote(wanted)} is not a host of this fleet. Use ${names.join(" or ")}.`;
  throw new FleetError("FLEET_USAGE_INVALID", message);
}
