import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { pipeline, Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { isFleetError, systemCode } from "../../base/errors.js";
import { parseObject } from "../../base/values/text.js";
import { HISTORY } from "../../runtime/history/session-state.js";
import { invalidArchive, type Manifest, MOST_BYTES, MOST_MANIFEST_BYTES, readManifest } from "./manifest.js";
import { BLOCK, checkHeader, END, entryName, MANIFEST_NAME, padding, sizeIn } from "./tar.js";

/** Receives the files of an archive as they are read. */
export interface Receiver {
  begin(manifest: Manifest): Promise<void>;
  file(path: string, content: AsyncIterable<Buffer>): Promise<void>;
}

/** How many bytes of a history to search for its first line, which names the session. The line is short. */
const MOST_FIRST_LINE = 64 * 1024;
const CHUNK_BYTES = 64 * 1024;

/**
 * Reads an archive from its beginning to its last byte, and checks all of it: the manifest, each header, the content of
 * each file, and that nothing follows. Without a receiver, writes nothing.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`
 */
export async function readArchive(archive: FileHandle, receiver?: Receiver): Promise<Manifest> {
  const stats = await archive.stat();
  if (!stats.isFile()) throw invalidArchive("it is not a regular file");
  if (stats.size > MOST_BYTES) throw invalidArchive(`it has more than ${MOST_BYTES} bytes`);
  const source = Readable.from(chunksOf(archive));
  const unpacked = createGunzip();
  // Ignore the error here, because it also makes the loop over the unpacked bytes fail.
  pipeline(source, unpacked, () => undefined);
  const input = new Input(unpacked);
  try {
    const manifest = await readAll(input, receiver);
    // zlib ignores zeros after the end of the compressed data, so check that it used every byte of the file.
    if (unpacked.bytesWritten !== stats.size) throw invalidArchive("data follows its end");
    return manifest;
  } catch (error) {
    if (isFleetError(error)) throw error;
    if (!/^(?:Z_|ERR_)/.test(systemCode(error) ?? "")) throw error;
    throw invalidArchive("it is not compressed with gzip, is cut short or is damaged", [], error);
  } finally {
    source.destroy();
    unpacked.destroy();
  }
}

/** Yields the bytes of the file in chunks. Leaves the file open, because an import reads it twice. */
async function* chunksOf(archive: FileHandle): AsyncGenerator<Buffer> {
  for (let position = 0; ; ) {
    const { buffer, bytesRead } = await archive.read(Buffer.alloc(CHUNK_BYTES), 0, CHUNK_BYTES, position);
    if (bytesRead === 0) return;
    position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

async function readAll(input: Input, receiver: Receiver | undefined): Promise<Manifest> {
  const header = await input.take(BLOCK);
  const size = sizeIn(header);
  if (!(size <= MOST_MANIFEST_BYTES)) throw invalidArchive("it does not begin with a manifest");
  checkHeader(header, MANIFEST_NAME, size);
  const manifest = readManifest(await input.take(size));
  await input.zeros(padding(size));
  await receiver?.begin(manifest);
  for (const [index, { path, bytes, sha256 }] of manifest.files.entries()) {
    checkHeader(await input.take(BLOCK), entryName(path, index), bytes);
    const hash = createHash("sha256");
    const beginning = path === HISTORY ? new Beginning() : null;
    const content = read(input, bytes, (chunk) => {
      hash.update(chunk);
      beginning?.add(chunk);
    });
    if (receiver === undefined) for await (const _ of content);
    else await receiver.file(path, content);
    if (hash.digest("hex") !== sha256) throw invalidArchive("the content of a file differs from the manifest");
    beginning?.check(manifest.session.id);
    await input.zeros(padding(bytes));
  }
  await input.zeros(END.length);
  if (!(await input.isAtEnd())) throw invalidArchive("data follows its end");
  return manifest;
}

async function* read(input: Input, bytes: number, seen: (chunk: Buffer) => void): AsyncGenerator<Buffer> {
  for (let left = bytes; left > 0; ) {
    const chunk = await input.upTo(left);
    left -= chunk.length;
    seen(chunk);
    yield chunk;
  }
}

/** Collects the beginning of a history, and checks which session it names. */
class Beginning {
  readonly #chunks: Buffer[] = [];
  #bytes = 0;

  add(chunk: Buffer): void {
    if (this.#bytes >= MOST_FIRST_LINE) return;
    this.#chunks.push(Buffer.from(chunk.subarray(0, MOST_FIRST_LINE - this.#bytes)));
    this.#bytes += chunk.length;
  }

  check(id: string): void {
    const [line = ""] = Buffer.concat(this.#chunks).toString("utf8").split("\n", 1);
    const named = sessionOfLine(line);
    if (named !== null && named !== id) throw invalidArchive("its history belongs to another session");
  }
}

/** The id of the session that the first line of a history names. Null if the line does not name a session. */
export function sessionOfLine(line: string): string | null {
  const { type, data } = parseObject(line) ?? {};
  if (type !== "session.start") return null;
  const { sessionId = null } = (data ?? {}) as { sessionId?: unknown };
  return typeof sessionId === "string" ? sessionId : null;
}

/**
 * The unpacked bytes, read in pieces. Only one piece is in memory, so an archive that unpacks endlessly does not fill
 * up the memory.
 */
class Input {
  readonly #source: AsyncIterator<Buffer>;
  #held: Buffer = Buffer.alloc(0);

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Returns the next 1 to `most` bytes. */
  async upTo(most: number): Promise<Buffer> {
    if (this.#held.length === 0 && !(await this.#more())) throw invalidArchive("it is cut short");
    const taken = this.#held.subarray(0, most);
    this.#held = this.#held.subarray(taken.length);
    return taken;
  }

  async take(bytes: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let left = bytes; left > 0; left -= parts.at(-1)?.length ?? 0) parts.push(await this.upTo(left));
    return Buffer.concat(parts);
  }

  async zeros(bytes: number): Promise<void> {
    if ((await this.take(bytes)).some((byte) => byte !== 0)) throw invalidArchive("data stands where zeros must be");
  }

  async isAtEnd(): Promise<boolean> {
    return this.#held.length === 0 && !(await this.#more());
  }

  async #more(): Promise<boolean> {
    for (;;) {
      const { done, value } = await this.#source.next();
      if (done === true) return false;
      this.#held = value;
      if (value.length > 0) return true;
    }
  }
}
