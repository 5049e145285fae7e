import { parseAddress } from "../config/rules.js";
import type { HostRecord } from "../model/host.js";
import { hostAway } from "./problems.js";

/** The address of a host's front door. @throws FleetError `FLEET_HOST_AWAY` when the host is gone or has no front door. */
export function doorOf({ name, gone, door }: HostRecord): { address: string; port: number } {
  const address = gone || door === null ? null : parseAddress(door);
  if (address === null) throw hostAway(name);
  return { address: address.host, port: address.port };
}
