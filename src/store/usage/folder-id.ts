import { randomBytes } from "node:crypto";
import { linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../errors.js";
import { scratchName, syncNow } from "../file/commit/durable.js";
import { mediumError, readIfThere } from "../file/failures.js";

/** The random id of a ledger folder. All processes get the same id, because only the first `link()` succeeds. */
export function folderIdOf(folder: string): string {
  const path = join(folder, "id");
  const read = () => readIfThere(path, () => readFileSync(path, "utf8"));
  const known = read();
  if (known !== undefined) return known;
  const temp = join(folder, scratchName("tmp"));
  try {
    writeFileSync(temp, randomBytes(12).toString("hex"), { mode: 0o600, flag: "wx" });
    syncNow(temp);
    linkSync(temp, path);
    // If a power failure lost the id, the folder would get a new one, and Redis would count the same lines again.
    syncNow(folder);
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw mediumError("write", folder, error);
  } finally {
    rmSync(temp, { force: true });
  }
  return read() ?? folderIdOf(folder);
}
