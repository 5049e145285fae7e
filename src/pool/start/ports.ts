import { createServer } from "node:net";
import type { Config } from "../../config/schema.js";
import { FleetError, systemCode } from "../../errors.js";
import type { Registry } from "../../model/registry.js";
import type { Launch } from "../../runtime/launch/environment.js";
import { type LaunchedServer, launchServer, PortTakenError } from "../../runtime/launch/launch.js";
import type { PoolContext } from "./start.js";

/**
 * The lowest port of the range that no recorded server holds and that is not in `skip`, or `preferred` if that is free.
 * Runs inside a registry update, and the caller reserves the port by recording it.
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

/** Whether this process can listen on the port now. The answer may be stale at once, so a later bind may still fail. */
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

/** How many ports in a row may turn out to be taken before the launch fails. */
const PORT_ATTEMPTS = 64;

/** Launches on the reserved port, or on the next free one when a program outside the fleet holds it. */
export async function launchOnFreePort(
  { config, env, stateRoot }: Omit<PoolContext, "store">,
  launch: Omit<Launch, "settings" | "env" | "stateRoot">,
  nextPort: (tried: ReadonlySet<number>) => Promise<number>,
  signal: AbortSignal,
): Promise<LaunchedServer> {
  const tried = new Set<number>();
  let { port } = launch;
  for (;;) {
    if (await isBindable(launch.server.address, port)) {
      try {
        return await launchServer({ ...launch, port, settings: config.runtime, env, stateRoot }, signal);
      } catch (error) {
        if (!(error instanceof PortTakenError)) throw error;
      }
    }
    tried.add(port);
    port = await nextPort(tried);
    if (tried.size >= PORT_ATTEMPTS) {
      throw new FleetError("FLEET_PORTS_EXHAUSTED", `${PORT_ATTEMPTS} ports in a row were taken by other programs.`, {
        suggestions: ["Choose another range: ports.from and ports.to in the configuration."],
      });
    }
  }
}
