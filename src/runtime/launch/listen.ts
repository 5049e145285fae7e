import dns from "node:dns";
import { once } from "node:events";
import type { Server } from "node:net";
import type { Address } from "../../config/rules.js";
import { isLoopback } from "../../config/values/redis-url.js";
import { FleetError, type FleetErrorCode, option, quote, type Suggestion, systemCode } from "../../errors.js";
import { abortable } from "../clock.js";

export type AddressKey = "serve.metrics" | "serve.listen" | "serve.http" | "proxy";

/** A file descriptor on which a socket already listens. */
export interface InheritedListener {
  fd: number;
}

/**
 * Makes `server` listen on the address that `key` configures. Resolves with the real address: port 0 has become the
 * chosen port.
 */
export async function listenOn(
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
  const { code = "FLEET_ADDRESS_UNUSABLE", because, look } = explain(address, cause);
  if (key === "proxy") {
    const message = `The proxy cannot listen on ${quote(showAddress(address))}: ${because}`;
    const elsewhere: Suggestion = `Use ${option("listen", "127.0.0.1:0")}.`;
    throw new FleetError(code, message, { cause, suggestions: [look ?? [], elsewhere].flat() });
  }
  const message = `serve cannot listen on ${quote(showAddress(address))} (${key}): ${because}`;
  const variable = `COPILOTFLEET_${key.replace(".", "_").toUpperCase()}` as const;
  const elsewhere: Suggestion = `${variable}=127.0.0.1:0 copilotfleet serve`;
  return new FleetError(code, message, { cause, suggestions: [look ?? [], elsewhere].flat() });
}

/** Explains why listening on the address failed. `look` is a command that shows more about the problem. */
function explain(
  { host, port }: Address,
  cause: unknown,
): { code?: FleetErrorCode; because: string; look?: Suggestion } {
  switch (systemCode(cause)) {
    case "EADDRINUSE": {
      const look: Suggestion = `ss -ltnp 'sport = :${port}'`;
      return { code: "FLEET_ADDRESS_TAKEN", because: "another process listens there", look };
    }
    case "EACCES":
      return { because: `this user may not open port ${port}. Allowed: a port from 1024 on, or 0 for any free port` };
    case "EADDRNOTAVAIL":
    case "EAFNOSUPPORT": {
      const allowed = 'an address of this host, such as "127.0.0.1", or "0.0.0.0" for all';
      const because = `this host does not have the address ${quote(host)}. Allowed: ${allowed}`;
      return { because, look: "ip address" };
    }
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return { because: `the name ${quote(host)} has no address. Allowed: an address or a name of this host` };
    default:
      return { because: cause instanceof Error ? cause.message : String(cause) };
  }
}
