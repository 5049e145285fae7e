import { createServer } from "node:net";
import type { Config } from "../../config/schema.js";
import { FleetError, systemCode } from "../../errors.js";
import type { Registry } from "../../model/registry.js";

/**
 * The preferred port if it is in the range and free, or else the lowest free port of the range. A port is free if no
 * recorded server has it and `skip` does not contain it. The caller reserves the port by recording it in the same
 * registry update.
 */
export function choosePort(
  registry: Registry,
  range: Config["ports"],
  skip: ReadonlySet<number>,
  preferred: number | null,
): number {
  const held = heldPorts(registry);
  const free = (port: number) => !held.has(port) && !skip.has(port);
  if (preferred !== null && preferred >= range.from && preferred <= range.to && free(preferred)) return preferred;
  for (let port = range.from; port <= range.to; port++) {
    if (free(port)) return port;
  }
  const strangers = skip.size === 0 ? "" : `, ${skip.size} by programs outside the fleet`;
  throw new FleetError(
    "FLEET_PORTS_EXHAUSTED",
    `No port is left between ${range.from} and ${range.to}: ${held.size} are held by servers${strangers}.`,
    {
      suggestions: [
        "copilotfleet ps",
        "copilotfleet stop SERVER",
        "Widen ports.from and ports.to in the configuration.",
      ],
    },
  );
}

export function heldPorts(registry: Registry): Set<number> {
  return new Set(
    Object.values(registry.servers).flatMap(({ port, replacement }) =>
      [port, replacement?.port].filter((held) => held != null),
    ),
  );
}

/**
 * Whether this process can listen on the port now. A later attempt may still fail, because another program may take the
 * port first.
 */
export function isBindable(address: string, port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error) => {
      const code = systemCode(error);
      if (code === "EADDRINUSE" || code === "EACCES") resolve(false);
      else reject(error);
    });
    server.listen({ host: address, port, exclusive: true }, () => server.close(() => resolve(true)));
  });
}
