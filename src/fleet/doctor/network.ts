import { readdirSync } from "node:fs";
import { join } from "node:path";
import { askProxy } from "../../sandbox/network/ask.js";
import { networkFolder, SERVERS_FOLDER } from "../../sandbox/network/folder.js";
import { failureOfNetwork, wantedNetwork } from "../../sandbox/network/trial.js";
import { tryMechanisms } from "../../sandbox/sandbox.js";
import { readIfThere } from "../../store/file/failures.js";
import { type Finding, failed, warning } from "./checks.js";
import type { SettingsContext } from "./settings.js";

/** Why the network of servers is open although it should be restricted; null otherwise. */
export async function whyOpen({ config, env }: Pick<SettingsContext, "config" | "env">): Promise<string | null> {
  const { mode } = config.sandbox;
  if (mode === "none") return null;
  const mechanism = (await tryMechanisms(mode)).find((attempt) => "wrap" in attempt);
  return await failureOfNetwork(wantedNetwork(config, env), mechanism ?? null);
}

/** The problem with the configured network of servers; null if there is none. */
export async function networkProblem(
  context: Pick<SettingsContext, "config" | "env" | "stateRoot">,
): Promise<Finding | null> {
  const { sandbox } = context.config;
  if (sandbox.network === "open" || sandbox.network === "auto") return null;
  const failure = await whyOpen(context);
  if (failure !== null) {
    const fix = "Install passt, or let the account make network namespaces. See docs/security.md, The network of a server.";
    return failed(`sandbox.network is "${sandbox.network}", but ${failure}, so no server starts`, fix);
  }
  const folder = networkFolder(context.stateRoot);
  const servers = readIfThere(folder, () => readdirSync(join(folder, SERVERS_FOLDER))) ?? [];
  if (servers.length === 0 || (await askProxy(folder)) !== null) return null;
  const detail = "the proxy of servers with an allow-list does not run, so they reach no host until their next use";
  return warning(detail, "copilotfleet serve # starts it again within seconds");
}
