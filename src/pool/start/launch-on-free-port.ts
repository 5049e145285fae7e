import { FleetError } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { GITHUB_TOKEN_VARIABLE, serverEnvironment } from "../../runtime/launch/environment.js";
import { type LaunchedServer, launchServer, PortTakenError } from "../../runtime/launch/launch.js";
import { isBindable } from "./ports.js";
import type { PoolContext } from "./start.js";

/** One launch of a server, as its record has it or will have it. */
export interface Launching {
  server: Pick<ServerRecord, "address" | "home" | "cwd">;
  runtimePath: string;
  launchId: string;
  port: number;
  connectionToken: string;
  githubToken: string | null;
  /** Reserves a port that was not tried before. */
  nextPort(tried: ReadonlySet<number>): Promise<number>;
}

/** How many ports in a row may turn out to be taken before the launch fails. */
const PORT_ATTEMPTS = 64;

/**
 * Launches on the reserved port, or on the next free one when a program outside the fleet holds it.
 *
 * @throws FleetError as `launchServer`; `FLEET_PORTS_EXHAUSTED` when too many ports in a row are taken, or none is left.
 */
export async function launchOnFreePort(
  { config, env, stateRoot }: Omit<PoolContext, "store">,
  launching: Launching,
  signal: AbortSignal,
): Promise<LaunchedServer & { port: number }> {
  const { server, runtimePath, launchId, connectionToken, githubToken } = launching;
  const { idleTimeoutMs } = config.runtime;
  const environment = serverEnvironment(
    { home: server.home, connectionToken, launchId, stateRoot, githubToken, pass: config.runtime.env },
    env,
  );
  const tried = new Set<number>();
  let port = launching.port;
  for (;;) {
    if (await isBindable(server.address, port)) {
      try {
        const launched = await launchServer(
          {
            launchId,
            runtimePath,
            args: config.runtime.args,
            address: server.address,
            port,
            home: server.home,
            cwd: server.cwd,
            environment,
            connectionToken,
            tokenVariable: githubToken === null ? null : GITHUB_TOKEN_VARIABLE,
            idleTimeoutSeconds: idleTimeoutMs === null ? null : Math.ceil(idleTimeoutMs / 1_000),
          },
          signal,
        );
        return { ...launched, port };
      } catch (error) {
        if (!(error instanceof PortTakenError)) throw error;
      }
    }
    tried.add(port);
    port = await launching.nextPort(tried);
    if (tried.size >= PORT_ATTEMPTS) {
      throw new FleetError("FLEET_PORTS_EXHAUSTED", `${PORT_ATTEMPTS} ports in a row were taken by other programs.`, {
        suggestions: ["Choose another range: ports.from and ports.to in the configuration."],
      });
    }
  }
}
