import { createHash } from "node:crypto";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import type { StoreContext } from "./context.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "./durable.js";
import { mediumError, newerError } from "./failures.js";
import { readIfThere } from "./head.js";
import { decodeRevision, encodeRevision } from "./revision.js";

const REVISION = 1;

interface Placement {
  user: string;
  serverId: string;
}

/** One file a user, named by a digest: ids that differ in case only have two files on any disk. The last writer wins. */
export class PlacementRecords {
  readonly #context: StoreContext;
  readonly #folder: string;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#folder = join(context.root, "placements");
  }

  /** A damaged file counts as none: the placement is worked out, and recorded, anew. */
  read(user: string): string | null {
    const path = this.#pathOf(user);
    const bytes = readIfThere(path);
    if (bytes === undefined) return null;
    const decoded = decodeRevision(bytes, REVISION);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "damaged") return null;
    const placement = JSON.parse(decoded.data) as Placement;
    return placement.user === user ? placement.serverId : null;
  }

  async record(user: string, serverId: string): Promise<void> {
    const { root, ensureRoot } = this.#context;
    ensureRoot();
    const temp = join(root, scratchName("tmp"));
    try {
      makeFolder(this.#folder);
      const data = JSON.stringify({ user, serverId } satisfies Placement);
      await closeQuietly(await writeNewFile(temp, encodeRevision(REVISION, scratchName("tmp"), data)));
      await rename(temp, this.#pathOf(user));
      await syncFolder(this.#folder);
    } catch (error) {
      await unlinkQuietly(temp);
      throw mediumError("write", this.#folder, error);
    }
  }

  #pathOf(user: string): string {
    return join(this.#folder, `${createHash("sha256").update(user).digest("hex").slice(0, 32)}.json`);
  }
}
