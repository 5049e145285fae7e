import { FleetError } from "../../errors.js";
import type { Launch } from "../../runtime/launch/environment.js";
import { type LaunchedServer, launchServer, PortTakenError } from "../../runtime/launch/launch.js";
import { isBindable } from "./ports.js";
import type { PoolContext } from "./start.js";

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
