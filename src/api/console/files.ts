import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { brotliDecompress } from "node:zlib";
import { systemCode } from "../../errors.js";

const decompress = promisify(brotliDecompress);

/** The page itself. All other files have names with a hash of their content. */
export const PAGE = "index.html";

const TYPES: Readonly<Record<string, string>> = {
  css: "text/css; charset=utf-8",
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
};

export interface ConsoleFile {
  type: string;
  /** The content, compressed with brotli. */
  compressed: Buffer;
}

/** The files of the console, which the build has compressed. Each is read once. */
export class ConsoleFiles {
  readonly #read = new Map<string, Promise<ConsoleFile | null>>();

  /** Returns the file with this name; null if it does not exist. */
  async find(name: string): Promise<ConsoleFile | null> {
    const ending = /^[\w-]+\.(css|html|js)$/.exec(name)?.[1];
    const type = ending === undefined ? undefined : TYPES[ending];
    if (type === undefined) return null;
    const known = this.#read.get(name);
    if (known !== undefined) return await known;
    const reading = read(name, type);
    // Store the promise, so that each file is read once. Delete the promise if the file does not exist, because clients
    // could otherwise fill the memory with made-up names.
    this.#read.set(name, reading);
    const found = await reading.catch(() => null);
    if (found === null) this.#read.delete(name);
    return await reading;
  }
}

/**
 * Returns the names of missing files: those that the page refers to, directly or through other files, and the page
 * itself.
 */
export async function missingFiles(files: Pick<ConsoleFiles, "find"> = new ConsoleFiles()): Promise<string[]> {
  const missing: string[] = [];
  const needed = new Set([PAGE]);
  for (const name of needed) {
    const file = await files.find(name);
    if (file === null) missing.push(name);
    const text = file === null ? "" : (await plain(file)).toString("utf8");
    for (const [, other = ""] of text.matchAll(/"(?:\/console|\.)\/([\w-]+\.(?:css|js))"/g)) needed.add(other);
  }
  return missing;
}

async function read(name: string, type: string): Promise<ConsoleFile | null> {
  const root = dirname(createRequire(import.meta.url).resolve("copilotfleet/package.json"));
  try {
    return { type, compressed: await readFile(join(root, "dist", "console", `${name}.br`)) };
  } catch (error) {
    if (systemCode(error) === "ENOENT") return null;
    throw error;
  }
}

/** Returns the decompressed content, for a client that does not accept brotli. */
export async function plain({ compressed }: ConsoleFile): Promise<Buffer> {
  return await decompress(compressed);
}
