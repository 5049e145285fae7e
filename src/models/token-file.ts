import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { printable } from "../config/values/text.js";
import { FleetError, systemCode } from "../errors.js";

/** More than any token, and little enough to read into memory at once. */
const LARGEST_BYTES = 64 * 1024;

export async function readTokenFile(path: string): Promise<string> {
  const name = printable(path);
  let file: FileHandle;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer indefinitely.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const reason = systemCode(error) ?? "unknown reason";
    throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `The token file ${name} cannot be read: ${reason}`, {
      suggestions: [`Put the token into ${name}, readable by you alone: chmod 600 ${name}`],
      cause: error,
    });
  }
  try {
    // Check the open file, not the path, because another file may replace it at that path.
    const stats = await file.stat();
    if (!stats.isFile() || stats.size > LARGEST_BYTES) {
      const allowed = `Allowed: a regular file of at most ${LARGEST_BYTES} bytes`;
      throw new FleetError("FLEET_TOKEN_INVALID", `The token file ${name} cannot hold a token. ${allowed}`);
    }
    if ((stats.mode & 0o077) !== 0) {
      const mode = (stats.mode & 0o777).toString(8).padStart(3, "0");
      throw new FleetError(
        "FLEET_TOKEN_INVALID",
        `The token file ${name} has mode ${mode}, which lets others use it. Allowed: a file that only its owner can use`,
        { suggestions: [`chmod 600 ${name}`] },
      );
    }
    return await file.readFile("utf8");
  } finally {
    await file.close();
  }
}
