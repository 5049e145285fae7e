import { join } from "node:path";
import type { RestrictedNetwork } from "../../model/sandbox.js";
import { realPath } from "../paths.js";
import { machineProgram, packageFolder } from "../programs.js";
import type { Command } from "../sandbox.js";
import { blockedList } from "./addresses.js";
import { EGRESS_SOCKET, makeNetworkFolder } from "./folder.js";

/*
 * A server with a restricted network has its own network namespace, with nothing but a loopback interface, and with
 * `public` an interface to all public addresses. `native/network.c` makes the namespace and starts a bridge. The bridge
 * passes connections on: from the server's port on the machine to the server, and from the server to the Unix sockets
 * in the network folder.
 */

/**
 * The paths that a server with this network must not reach: the folders with sockets of the machine's name service,
 * because an agent could send data out through them in the names that it looks up. With `public`, also the file with
 * the machine's name servers, which may be out of reach. Without that file, programs use the one at 127.0.0.1, where
 * the bridge listens.
 */
export function hiddenWith(network: RestrictedNetwork | undefined): string[] {
  if (network === undefined) return [];
  const folders = ["/run/systemd/resolve", "/run/resolvconf"];
  return network === "public" ? [...folders, realPath("/etc/resolv.conf")] : folders;
}

interface Namespace {
  network: RestrictedNetwork;
  /** The server's port, inside and outside. */
  port: number;
  stateRoot: string;
  /** The control groups of the server, which the bridge joins, too. */
  cgroups: readonly string[];
}

/** Wraps a command so that it runs in its own network namespace. The command's program has to be an absolute path. */
export function inNamespace(command: Command, { network, port, stateRoot, cgroups }: Namespace): Command {
  return [
    programPath(),
    ...["--port", String(port), "--sockets", makeNetworkFolder(stateRoot)],
    ...(network === "allow-list" ? ["--egress", EGRESS_SOCKET] : []),
    ...(network === "public" ? publicOptions() : []),
    ...cgroups.flatMap((folder) => ["--cgroup", folder]),
    "--",
    ...command,
  ];
}

/** Wraps a command like {@link inNamespace}, to find out whether that works here. No connection reaches the command. */
export function inTrialNamespace(command: Command, network: RestrictedNetwork): Command {
  const options = network === "public" ? publicOptions() : [];
  return [programPath(), "--port", "0", "--sockets", "/", ...options, "--", ...command];
}

function publicOptions(): string[] {
  return ["--public", machineProgram("passt") ?? "/usr/bin/passt", "--blocked", blockedList()];
}

/**
 * The path of `copilotfleet-network`, which is in the launcher's folder. Without a package folder, both programs are
 * missing, so no server gets a restricted network.
 */
function programPath(): string {
  return join(packageFolder() ?? "/", "native", `linux-${process.arch}`, "copilotfleet-network");
}
