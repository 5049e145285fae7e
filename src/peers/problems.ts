import { FleetError, quote } from "../errors.js";
import type { HostRecord } from "../model/host.js";

/** Refuses a direct connection, because a server listens only on its own host and its token stays there. */
export function onAnotherHost(user: string, { name, door }: HostRecord): FleetError {
  return new FleetError(
    "FLEET_SERVER_UNREACHABLE",
    `The server of ${quote(user)} is on host ${quote(name)}. A direct connection works only on that host.`,
    {
      suggestions: [
        ...(door === null ? [] : [`Connect to the front door of host ${name} instead, at ${door}, with a token:`]),
        `copilotfleet token issue --user ${user} --ttl 30d`,
      ],
    },
  );
}

export function tokenStaysHere(user: string, { name }: HostRecord): FleetError {
  return new FleetError(
    "FLEET_USAGE_INVALID",
    `gitHubToken cannot be given for ${quote(user)}, who is on host ${quote(name)}, because tokens are never sent to another host.`,
    { suggestions: [`Set "auth" in the configuration of host ${name}.`] },
  );
}
