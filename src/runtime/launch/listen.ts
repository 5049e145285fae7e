import dns from "node:dns";
import { once } from "node:events";
import { createServer, type Server } from "node:net";
import { abortable } from "../../base/clock.js";
import { FleetError, option, quote, type Suggestion, systemCode } from "../../base/errors.js";
import { isLoopback } from "../../base/values/network.js";
import type { Address } from "../../config/rules.js";

export type AddressKey = "serve.metrics" | "serve.listen" | "serve.http" | "proxy";

/** A file descriptor on which a socket already listens. */
export interface InheritedListener {
  fd: number;
}

/**
 * The address of the other family for which a client may take an address: the name `localhost` means both loopback
 * addresses. The IPv6 address for all addresses includes those of IPv4, so it has no entry.
 */
const OTHER_FAMILY: Readonly<Record<string, string>> = { "127.0.0.1": "::1", "::1": "127.0.0.1", "0.0.0.0": "::" };
/** How many free ports to try, until one is free in both families. */
const MAX_TRIES = 20;

/** The listeners on the addresses of the other family. */
const twins = new WeakMap<Server, Server>();

/**
 * Makes `server` listen on the address that `key` configures, and on the same port of the other family. Otherwise,
 * another program on this machine could listen there, and receive the tokens of clients that connect to `localhost`.
 * Resolves with the real address: port 0 has become the chosen port. {@link stopListening} ends both listeners.
 */
export async function listenOn(
  server: Server,
  key: AddressKey,
  address: Address | InheritedListener,
  signal: AbortSignal,
): Promise<Address> {
  for (let tries = 1; ; tries++) {
    const bound = await listenOnce(server, key, address, signal);
    const other = OTHER_FAMILY[bound.host];
    if (other === undefined) return bound;
    try {
      await listenToo(server, { host: other, port: bound.port });
      return bound;
    } catch (cause) {
      const code = systemCode(cause);
      // This machine has no IPv6 (or no IPv4).
      if (code === "EADDRNOTAVAIL" || code === "EAFNOSUPPORT") return bound;
      // The process that opened the inherited socket may have opened this one, too.
      if (code === "EADDRINUSE" && "fd" in address) return bound;
      await stopListening(server);
      if (code === "EADDRINUSE" && "port" in address && address.port === 0 && tries < MAX_TRIES) continue;
      throw cannotListen(key, { host: other, port: bound.port }, cause);
    }
  }
}

/** Accepts no more connections. Resolves when all accepted connections have ended. */
export async function stopListening(server: Server): Promise<void> {
  const twin = twins.get(server);
  const close = (each: Server) => new Promise<void>((resolve) => each.close(() => resolve()));
  await Promise.all([close(server), twin === undefined ? undefined : close(twin)]);
}

/** Passes the connections to another address on to `server`. */
async function listenToo(server: Server, { host, port }: Address): Promise<void> {
  const { allowHalfOpen, noDelay } = server as Server & { allowHalfOpen: boolean; noDelay: boolean };
  const twin = createServer({ allowHalfOpen, noDelay }, (socket) => server.emit("connection", socket));
  twin.maxConnections = server.maxConnections;
  twin.listen({ host, port, ipv6Only: true });
  await once(twin, "listening"); // rejects on "error"
  twin.on("error", (error) => server.emit("error", error));
  twins.set(server, twin);
}

async function listenOnce(
  server: Server,
  key: AddressKey,
  address: Address | InheritedListener,
  signal: AbortSignal,
): Promise<Address> {
  signal.throwIfAborted();
  const where = "fd" in address ? { fd: address.fd } : { host: await hostOf(key, address, signal), port: address.port };
  const listening = once(server, "listening"); // rejects on "error"
  server.listen(where);
  try {
    await abortable(listening, signal);
  } catch (cause) {
    if (!signal.aborted) throw cannotListen(key, address, cause);
    server.close(); // otherwise it would start to listen as soon as the name lookup finds an address
    throw cause;
  }
  const bound = server.address();
  if (bound === null || typeof bound === "string") throw new FleetError("FLEET_INTERNAL", `${key} has no port`);
  return { host: bound.address, port: bound.port };
}

/**
 * Returns the host on which to listen. Resolves `localhost` first, to check that it really is a loopback address on
 * this machine.
 *
 * @throws FleetError `FLEET_ADDRESS_UNUSABLE` when `localhost` has no address, or one that other machines may reach.
 */
async function hostOf(key: AddressKey, address: Address, signal: AbortSignal): Promise<string> {
  if (address.host !== "localhost") return address.host;
  const found = await abortable(dns.promises.lookup(address.host), signal).catch((cause: unknown) => {
    throw signal.aborted ? cause : cannotListen(key, address, cause);
  });
  if (isLoopback({ host: found.address })) return found.address;
  const because = `on this machine, "localhost" is ${found.address}, which other machines may reach. Allowed: 127.0.0.1 or [::1]`;
  throw cannotListen(key, address, new Error(because));
}

/** `host:port` as in the configuration, with IPv6 addresses in brackets. */
export function showAddress({ host, port }: Address): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

function cannotListen(key: AddressKey, address: Address | InheritedListener, cause: unknown): FleetError {
  if ("fd" in address) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const message = `Descriptor ${address.fd} (${key}), which was handed to this process, does not listen: ${why}.`;
    return new FleetError("FLEET_ADDRESS_UNUSABLE", message, { cause });
  }
  const { because, look = [] } = explain(address, cause);
  const variable = `COPILOTFLEET_${key.replace(".", "_").toUpperCase()}` as const;
  const elsewhere: Suggestion =
    key === "proxy" ? `Use ${option("listen", "127.0.0.1:0")}.` : `${variable}=127.0.0.1:0 copilotfleet serve`;
  const who = key === "proxy" ? "The proxy" : "serve";
  const message = `${who} cannot listen on ${quote(showAddress(address))}${key === "proxy" ? "" : ` (${key})`}: ${because}`;
  const code = systemCode(cause) === "EADDRINUSE" ? "FLEET_ADDRESS_TAKEN" : "FLEET_ADDRESS_UNUSABLE";
  return new FleetError(code, message, { cause, suggestions: [look, elsewhere].flat() });
}

/** Explains why listening on the address failed. `look` is a command that shows more about the problem. */
function explain({ host, port }: Address, cause: unknown): { because: string; look?: Suggestion } {
  switch (systemCode(cause)) {
    case "EADDRINUSE":
      return { because: "another process listens there", look: `ss -ltnp 'sport = :${port}'` };
    case "EACCES":
      return { because: `this user may not open port ${port}. Allowed: a port from 1024 on, or 0 for any free port` };
    case "EADDRNOTAVAIL":
    case "EAFNOSUPPORT": {
      const allowed = 'an address of this host, such as "127.0.0.1", or "0.0.0.0" for all';
      return { because: `this host does not have the address ${quote(host)}. Allowed: ${allowed}`, look: "ip address" };
    }
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return { because: `the name ${quote(host)} has no address. Allowed: an address or a name of this host` };
    default:
      return { because: cause instanceof Error ? cause.message : String(cause) };
  }
}
