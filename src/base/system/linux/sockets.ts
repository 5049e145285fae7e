import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, readSync } from "node:fs";
import { seen } from "./proc.js";

/**
 * Whether the process itself has a TCP socket that listens on the port. Looks in the network namespace of the process
 * `seenFrom`. Default: the process itself.
 */
export function listensOn(pid: number, port: number, seenFrom = pid): boolean {
  return ["tcp", "tcp6"].some((table) => {
    // Stop at the first match, because the kernel needs milliseconds to get past the last listening socket.
    for (const listener of listeners(`/proc/${seenFrom}/net/${table}`))
      if (listener.port === port && holdsSocket(pid, listener.inode)) return true;
    return false;
  });
}

/**
 * Whether a process has the socket open. Stops at the first match: a server opens its listening socket early, so its
 * descriptors for clients come later. False if the process is gone or belongs to another user.
 */
function holdsSocket(pid: number, inode: string): boolean {
  return openFiles(pid).some((fd) => seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) === `socket:[${inode}]`);
}

/** The numbers of a process's open descriptors, as text. Empty if the process is gone or belongs to another user. */
export function openFiles(pid: number): string[] {
  return seen(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
}

const LISTENING = "0A";
const ESTABLISHED = "01";

/** The length of a line in the kernel's table of sockets: `tcp4_seq_show` pads each to 149 bytes and adds a newline. */
const SOCKET_LINE_BYTES = 150;

/**
 * The listening sockets of a network namespace. The kernel lists them first. We read line by line and stop after them,
 * because the kernel needs milliseconds for the other sockets.
 */
function* listeners(table: string): Generator<{ port: number; inode: string }> {
  const fd = seen(() => openSync(table, "r"));
  if (fd === null) return; // the process is gone, or the kernel has no IPv6
  try {
    const chunk = Buffer.alloc(SOCKET_LINE_BYTES);
    let text = "";
    for (let heading = true; ; ) {
      const bytes = readSync(fd, chunk);
      if (bytes === 0) return;
      text += chunk.toString("latin1", 0, bytes);
      for (let end = text.indexOf("\n"); end !== -1; end = text.indexOf("\n")) {
        const [, local = "", , state, , , , , , inode = ""] = text.slice(0, end).trim().split(/\s+/);
        text = text.slice(end + 1);
        if (!heading && state !== LISTENING) return;
        if (!heading) yield { port: portOf(local), inode };
        heading = false;
      }
    }
  } finally {
    closeSync(fd);
  }
}

/**
 * Returns those of `ports` to which a client is connected. Ignores clients whose own port is in `except`. Reads the
 * kernel's whole table of sockets, which takes milliseconds.
 */
export function connectedPorts(ports: ReadonlySet<number>, except: ReadonlySet<number>): Set<number> {
  const found = new Set<number>();
  for (const table of ["tcp", "tcp6"]) {
    const text = seen(() => readFileSync(`/proc/self/net/${table}`, "utf8")) ?? ""; // the kernel may have no IPv6
    for (const line of text.split("\n").slice(1)) {
      const [, local = "", remote = "", state] = line.trim().split(/\s+/);
      const port = portOf(local);
      if (state === ESTABLISHED && ports.has(port) && !except.has(portOf(remote))) found.add(port);
    }
  }
  return found;
}

function portOf(address: string): number {
  return Number.parseInt(address.slice(address.lastIndexOf(":") + 1), 16);
}
