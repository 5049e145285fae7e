import { readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ifThere } from "../../runtime/files/if-there.js";
import { networkFolder, SERVERS_FOLDER } from "../../sandbox/network/folder.js";
import { scratchName } from "../../store/file/commit/durable.js";

/** The logs in which the proxy of restricted networks lists the requests that it refused. */
const EGRESS_LOGS = ["egress.log", "egress.log.1"];

/** Replaces names in the logs of the servers' proxy. Removes the proxy's rule files that contain one of the names. */
export async function concealInLogs(stateRoot: string, names: ReadonlyMap<string, string>): Promise<void> {
  const folder = networkFolder(stateRoot);
  for (const log of EGRESS_LOGS) conceal(folder, log, names);
  const rules = join(folder, SERVERS_FOLDER);
  for (const name of ifThere(() => readdirSync(rules)) ?? []) {
    const text = ifThere(() => readFileSync(join(rules, name), "utf8")) ?? "";
    if ([...names.keys()].some((each) => text.includes(JSON.stringify(each))))
      rmSync(join(rules, name), { force: true });
  }
}

/**
 * Replaces names in one log. The proxy opens the log again for each line, so it writes later lines to the new file. A
 * line that it adds during the replacement may be lost.
 */
function conceal(folder: string, log: string, names: ReadonlyMap<string, string>): void {
  const path = join(folder, log);
  const before = ifThere(() => readFileSync(path, "utf8"));
  if (before === null) return;
  let after = before;
  for (const [name, pseudonym] of names) after = after.replaceAll(JSON.stringify(name), JSON.stringify(pseudonym));
  if (after === before) return;
  const temporary = join(folder, scratchName("tmp"));
  writeFileSync(temporary, after, { mode: 0o600, flag: "wx", flush: true });
  renameSync(temporary, path);
}
