import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { sync } from "../../runtime/files/copy-folder.js";
import type { Manifest } from "./manifest.js";
import type { Receiver } from "./read.js";

/** Unpacks an archive into a new folder that only the fleet's account can enter. */
export class Unpacker implements Receiver {
  readonly #folder: string;
  readonly #signal: AbortSignal;

  constructor(folder: string, signal: AbortSignal) {
    this.#folder = folder;
    this.#signal = signal;
  }

  async begin({ folders }: Manifest): Promise<void> {
    await mkdir(this.#folder, { mode: 0o700 });
    for (const path of folders) await mkdir(join(this.#folder, path), { mode: 0o700 });
  }

  async file(path: string, content: AsyncIterable<Buffer>): Promise<void> {
    const file = await open(join(this.#folder, path), "wx", 0o600);
    try {
      for await (const chunk of content) {
        this.#signal.throwIfAborted();
        await file.writeFile(chunk);
      }
      await file.sync();
    } finally {
      await file.close();
    }
  }

  /** Makes the folders survive a crash of the machine. The files are synced already. */
  async sync({ folders }: Manifest): Promise<void> {
    for (const path of [...folders, ""]) await sync(join(this.#folder, path));
  }
}
