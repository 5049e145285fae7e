import { readdirSync } from "node:fs";
import { join } from "node:path";
import { askProxy } from "../../sandbox/network/ask.js";
import { networkFolder, SERVERS_FOLDER } from "../../sandbox/network/folder.js";
import { failureOfNetwork } from "../../sandbox/network/trial.js";
import { tryMechanisms } from "../../sandbox/sandbox.js";
import { readIfThere } from "../../store/file/failures.js";
import { type Finding, failed, warning } from "./checks.js";
import type { SettingsContext } from "./settings.js";

/** The problem with the configured network of servers; null if there is none. */
export async function networkProblem({
  config: { sandbox },
  stateRoot,
}: Pick<SettingsContext, "config" | "stateRoot">): Promise<Finding | null> {
  if (sandbox.network === "open" || sandbox.mode === "none") return null;
  const mechanism = (await tryMechanisms(sandbox.mode)).find((attempt) => "wrap" in attempt);
  const failure = await failureOfNetwork(sandbox, mechanism ?? null);
  if (failure !== null) {
    const fix = "Let the fleet's account make network namespaces. See docs/security.md, The network of a server.";
    return failed(`sandbox.network is "${sandbox.network}", but ${failure}, so no server starts`, fix);
  }
  const folder = networkFolder(stateRoot);
  const servers = readIfThere(folder, () => readdirSync(join(folder, SERVERS_FOLDER))) ?? [];
  if (servers.length === 0 || (await askProxy(folder)) !== null) return null;
  const detail = "the proxy of servers with an allow-list does not run, so they reach no host until their next use";
  return warning(detail, "copilotfleet serve # starts it again within seconds");
}
