import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { closeQuietly, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../commit/durable.js";
import type { StoreContext } from "../context.js";
import { readIfThere, writing } from "../failures.js";

/** `end`: the time at which a token expires, if it is earlier than in its record. `used`: the time of its last use. */
type Kind = "end" | "used";

/**
 * Notes about tokens, each in a file beside the token's record. The record never changes, so that no write can bring a
 * revoked token back. A note without a record means nothing.
 */
export class TokenNotes {
  readonly #context: StoreContext;
  readonly #folder: string;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#folder = join(context.root, "tokens");
  }

  read(id: string, kind: Kind): string | null {
    const path = this.#pathOf(id, kind);
    return readIfThere(path, () => readFileSync(path, "utf8")) ?? null;
  }

  /** Writes a note, unless the token has no record. Only an `end` is synced to disk. */
  async write(id: string, kind: Kind, text: string): Promise<void> {
    this.#context.checkRoot();
    const record = join(this.#folder, `${id}.json`);
    if (!existsSync(record)) return;
    const path = this.#pathOf(id, kind);
    const temp = join(this.#context.root, scratchName("tmp"));
    await writing(this.#folder, async () => {
      try {
        if (kind === "end") closeQuietly(await writeNewFile(temp, Buffer.from(text)));
        else writeFileSync(temp, text, { mode: 0o600, flag: "wx" });
        await rename(temp, path);
        if (kind === "end") await syncFolder(this.#folder);
      } finally {
        unlinkQuietly(temp);
      }
    });
    // The token may have been deleted during the write. A deletion removes the record first and the notes afterwards.
    // So if the record still exists, a later deletion removes this note.
    if (!existsSync(record)) unlinkQuietly(path);
  }

  delete(id: string): void {
    for (const kind of ["end", "used"] as const) unlinkQuietly(this.#pathOf(id, kind));
  }

  #pathOf(id: string, kind: Kind): string {
    return join(this.#folder, `${id}.${kind}`);
  }
}
