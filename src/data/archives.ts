import { randomBytes } from "node:crypto";
import { mkdir, open, readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { FleetError, quote } from "../errors.js";
import { ifThereLater } from "../runtime/files/if-there.js";

/** How many bytes of an archive one call between hosts transfers. */
export const PART_BYTES = 1024 ** 2;
/** An archive that nobody has written to for this long, in milliseconds, counts as left by a killed process. */
const LEFT_MS = 3_600_000;
const NAME = /^[0-9a-f]{32}$/;

/** The archives on this host that are on their way to or from another host. */
export class ArchivesUnderWay {
  readonly #folder: string;

  constructor(stateRoot: string) {
    this.#folder = join(stateRoot, "archives");
  }

  /** A name for a new archive. Also removes archives that killed processes left. */
  async newName(): Promise<string> {
    await mkdir(this.#folder, { mode: 0o700, recursive: true });
    for (const name of await readdir(this.#folder)) {
      const path = join(this.#folder, name);
      const stats = await ifThereLater(async () => await stat(path));
      if (stats !== null && stats.mtimeMs < Date.now() - LEFT_MS) await rm(path, { force: true, recursive: true });
    }
    return randomBytes(16).toString("hex");
  }

  /** @throws FleetError `FLEET_USAGE_INVALID` when the name does not have the form of the names from {@link newName} */
  pathOf(name: string): string {
    if (NAME.test(name)) return join(this.#folder, name);
    throw new FleetError("FLEET_USAGE_INVALID", `${quote(name)} is not the name of an archive.`);
  }

  /** Returns at most {@link PART_BYTES} bytes; an empty buffer at the end of the archive. */
  async read(name: string, offset: number): Promise<Buffer> {
    const file = await open(this.pathOf(name), "r");
    try {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(PART_BYTES), 0, PART_BYTES, offset);
      return buffer.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  }

  async write(name: string, offset: number, bytes: Buffer): Promise<void> {
    const file = await open(this.pathOf(name), offset === 0 ? "wx" : "r+", 0o600);
    try {
      await file.write(bytes, 0, bytes.length, offset);
    } finally {
      await file.close();
    }
  }

  async remove(name: string): Promise<void> {
    await rm(this.pathOf(name), { force: true });
  }
}
