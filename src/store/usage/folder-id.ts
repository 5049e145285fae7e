import { randomBytes } from "node:crypto";
import { linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../errors.js";
import { scratchName, syncNow } from "../file/commit/durable.js";
import { mediumError, readIfThere } from "../file/failures.js";

/** The random id of a folder of the ledger. All processes get the same id, because only one of them can link its file. */
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
    // With another id after a power failure, the lines that Redis has would count again.
    syncNow(folder);
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw mediumError("write", folder, error);
  } finally {
    rmSync(temp, { force: true });
  }
  return read() ?? folderIdOf(folder);
}
