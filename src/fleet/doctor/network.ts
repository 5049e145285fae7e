import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { Config } from "../../config/schema.js";
import { askProxy } from "../../sandbox/network/ask.js";
import { networkFolder, SERVERS_FOLDER } from "../../sandbox/network/folder.js";
import { readIfThere } from "../../store/file/failures.js";
import { type Finding, failed, warning } from "./checks.js";

/**
 * The problem with the configured network of servers; null if there is none.
 *
 * @param failure why this machine cannot restrict the network in this way; null if it can
 */
export async function networkProblem(
  { sandbox }: Pick<Config, "sandbox">,
  { failure, stateRoot }: { failure: string | null; stateRoot: string },
): Promise<Finding | null> {
  if (sandbox.network === "open" || sandbox.network === "auto") return null;
  if (failure !== null) {
    const fix =
      "Install passt, or let the account make network namespaces. See docs/security.md, The network of a server.";
    return failed(`sandbox.network is "${sandbox.network}", but ${failure}, so no server starts`, fix);
  }
  const folder = networkFolder(stateRoot);
  const servers = readIfThere(folder, () => readdirSync(join(folder, SERVERS_FOLDER))) ?? [];
  if (servers.length === 0 || (await askProxy(folder)) !== null) return null;
  const detail = "the proxy of servers with an allow-list does not run, so they reach no host until their next use";
  return warning(detail, "copilotfleet serve # starts it again within seconds");
}
