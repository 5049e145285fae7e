import { join } from "node:path";
import type { RestrictedNetwork } from "../../model/sandbox.js";
import { packageFolder } from "../programs.js";
import type { Command } from "../sandbox.js";
import { EGRESS_SOCKET, makeNetworkFolder } from "./folder.js";

/*
 * A server with a restricted network has a network namespace of its own, with nothing but a loopback. `native/network.c` makes
 * it, and a bridge that passes connections on: from the server's port on the machine to the server, and from the server to the
 * Unix sockets in the network folder.
 */

/** Folders with sockets of the machine's name service, through which an agent could send data as names. */
export const NAME_SERVICE = ["/run/systemd/resolve", "/run/resolvconf"];

interface Namespace {
  network: RestrictedNetwork;
  /** The server's port, inside and outside. */
  port: number;
  stateRoot: string;
  /** The control groups of the server, which the bridge joins, too. */
  cgroups: readonly string[];
}

/** The command in a network namespace of its own. Its program has to be an absolute path. */
export function inNamespace(command: Command, { network, port, stateRoot, cgroups }: Namespace): Command {
  return [
    programPath(),
    ...["--port", String(port), "--sockets", makeNetworkFolder(stateRoot)],
    ...(network === "allow-list" ? ["--egress", EGRESS_SOCKET] : []),
    ...cgroups.flatMap((folder) => ["--cgroup", folder]),
    "--",
    ...command,
  ];
}

/** The command in such a namespace, to try whether that works here. No connection reaches it. */
export function inTrialNamespace(command: Command): Command {
  return [programPath(), "--port", "0", "--sockets", "/", "--", ...command];
}

/** Beside the launcher, without which the network is not restricted. */
function programPath(): string {
  return join(packageFolder() ?? "/", "native", `linux-${process.arch}`, "copilotfleet-network");
}
