import { type Address, parseAddress } from "../config/rules.js";
import type { HostRecord } from "../model/host.js";
import { showAddress } from "../runtime/launch/listen.js";
import { hostAway } from "./problems.js";

/** The prefix of a recorded front-door address with TLS. */
const TLS = "tls://";

export interface Door {
  address: string;
  port: number;
  hasTls: boolean;
}

/** The front door of a host. @throws FleetError `FLEET_HOST_AWAY` when the host is gone or has no front door. */
export function doorOf({ name, gone, door }: HostRecord): Door {
  const hasTls = door?.startsWith(TLS) === true;
  const address = gone || door === null ? null : parseAddress(hasTls ? door.slice(TLS.length) : door);
  if (address === null) throw hostAway(name);
  return { address: address.host, port: address.port, hasTls };
}

/** The address of this host's front door, as the host announces it. */
export function announcedDoor(address: Address, hasTls: boolean): string {
  return `${hasTls ? TLS : ""}${showAddress(address)}`;
}
