import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { FleetError, systemCode } from "../base/errors.js";
import { printable, shellQuote } from "../base/values/text.js";
import { isExposed } from "../config/load/files.js";

const LONGEST_SECRET = 4096;
const LARGEST_FILE_BYTES = 64 * 1024;

/** A kind of secret: its word in messages, and the code of the errors about it. */
export const TOKEN = { word: "token", code: "FLEET_TOKEN_UNAVAILABLE" } as const;
export const KEY = { word: "key", code: "FLEET_MODEL_UNCONFIGURED" } as const;
export const PRIVATE_KEY = { ...TOKEN, word: "private key" } as const;
export type SecretKind = typeof TOKEN | typeof KEY | typeof PRIVATE_KEY;

/** The fault of a secret, as the end of a sentence; null if the secret has no fault. Never quotes the secret. */
export function secretFault(secret: string, { word }: SecretKind): string | null {
  if (secret === "") return "is empty";
  if (secret.length > LONGEST_SECRET) return `has ${secret.length} characters. Allowed: at most ${LONGEST_SECRET}`;
  if (/^[\x21-\x7e]+$/.test(secret)) return null;
  return `contains spaces, line breaks or other characters that no ${word} has`;
}

/**
 * Reads a secret from a file that only its owner can use.
 *
 * @throws FleetError if the file cannot be read, is not a regular file, is too large, or can be used by others
 */
export async function readSecretFile(path: string, { word, code }: SecretKind): Promise<string> {
  const name = printable(path);
  let file: FileHandle;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer indefinitely.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    if (systemCode(error) === "ENOENT") {
      throw new FleetError(code, `The ${word} file ${name} does not exist.`, {
        suggestions: [
          `Give the path of an existing file that contains the ${word} and that only you can read.`,
          `ls -l ${shellQuote(dirname(name))}`,
        ],
        cause: error,
      });
    }
    const reason = systemCode(error) ?? "unknown reason";
    throw new FleetError(code, `The ${word} file ${name} cannot be read: ${reason}`, {
      suggestions: [`Put the ${word} into ${name}.`, `chmod 600 ${shellQuote(name)}`],
      cause: error,
    });
  }
  try {
    // Check the open file, not the path, because another file may replace it at that path.
    const stats = await file.stat();
    if (!stats.isFile() || stats.size > LARGEST_FILE_BYTES) {
      const allowed = `Allowed: a regular file of at most ${LARGEST_FILE_BYTES} bytes`;
      throw new FleetError(code, `The ${word} file ${name} cannot hold a ${word}. ${allowed}`);
    }
    if (isExposed(stats)) {
      const mode = (stats.mode & 0o777).toString(8).padStart(3, "0");
      throw new FleetError(
        code,
        `The ${word} file ${name} has mode ${mode}, which lets others use it. Allowed: a file that only its owner can use`,
        { suggestions: [`chmod 600 ${shellQuote(name)}`] },
      );
    }
    return await file.readFile("utf8");
  } finally {
    await file.close();
  }
}
