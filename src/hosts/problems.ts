import { FleetError, quote } from "../errors.js";
import type { HostRecord } from "../model/host.js";
import type { SessionRecord } from "../model/session.js";

/** The error when this host does not serve. Other hosts may then take over its sessions, so it must not open them. */
export function ownHostAway(own: string, cause?: unknown): FleetError {
  const message = `This host, ${quote(own)}, does not serve, so other hosts may take over its sessions in the shared storage.`;
  return new FleetError("FLEET_HOST_AWAY", message, {
    suggestions: ["copilotfleet serve", "copilotfleet top --once"],
    cause,
  });
}

/** The error when the shared storage lacks the folder of this host, for example because nothing is mounted there. */
export function notMounted(shared: string, own: string): FleetError {
  const message = `The folder ${quote(shared)} is not the folder that host ${quote(own)} shares with other hosts, or it is not mounted.`;
  return new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: [`findmnt --target ${shared}`, "copilotfleet doctor"],
  });
}

export function hostAway(name: string, cause?: unknown): FleetError {
  return new FleetError("FLEET_HOST_AWAY", `Host ${quote(name)} cannot be reached.`, {
    suggestions: ["copilotfleet top --once", `copilotfleet serve # on host ${name}`, "Try again in a minute."],
    cause,
  });
}

export function sessionStranded({ id, host = "" }: SessionRecord): FleetError {
  const message = `Session ${quote(id)} is on the disk of host ${quote(host)}, which does not serve.`;
  return new FleetError("FLEET_SESSION_STRANDED", message, {
    suggestions: [`copilotfleet serve  # on host ${host}`, "copilotfleet top --once"],
  });
}

/** The error when the user is placed on another host. The front door then relays the client to that host. */
export function userMoved(user: string, to: Pick<HostRecord, "name">): FleetError {
  return new FleetError("FLEET_SESSION_MOVED", `User ${quote(user)} is now placed on host ${quote(to.name)}.`, {
    suggestions: ["Try again: you are relayed to the host that has the user's sessions.", "copilotfleet top --once"],
  });
}

/** The error when another host has the session. The caller tries again on that host. */
export function sessionMoved({ id }: Pick<SessionRecord, "id">, to: Pick<HostRecord, "name"> | null): FleetError {
  const where = to === null ? "is about to move to another host" : `is now on host ${quote(to.name)}`;
  return new FleetError("FLEET_SESSION_MOVED", `Session ${quote(id)} ${where}.`, {
    suggestions: ["Try again: you are relayed to the host that has it.", "copilotfleet top --once"],
  });
}
