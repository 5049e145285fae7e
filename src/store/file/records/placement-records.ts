import { createHash } from "node:crypto";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Placement, UserPlacement } from "../../../model/placement.js";
import type { PlacementStore } from "../../ports.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../commit/durable.js";
import { listFolder, readIfThere } from "../commit/head.js";
import { decodeRevision, encodeRevision } from "../commit/revision.js";
import type { StoreContext } from "../context.js";
import { mediumError, newerError } from "../failures.js";

const REVISION = 1;

const FILE = /^[0-9a-f]{32}\.json$/;

/**
 * One file for each user. Its name is a digest, so that ids that differ only in case have separate files on any disk.
 * If two processes write at the same time, the later write wins.
 */
export class PlacementRecords implements PlacementStore {
  readonly #context: StoreContext;
  readonly #folder: string;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#folder = join(context.root, "placements");
  }

  /** A damaged file counts as missing, so the user is placed again. */
  async read(user: string): Promise<Placement | null> {
    this.#context.checkRoot();
    return this.#read(user);
  }

  #read(user: string): Placement | null {
    const recorded = this.#readFile(this.#pathOf(user));
    return recorded?.user === user ? recorded.placement : null;
  }

  async list(): Promise<UserPlacement[]> {
    const names = (listFolder(this.#folder)?.others ?? []).filter((name) => FILE.test(name));
    return names.flatMap((name) => this.#readFile(join(this.#folder, name)) ?? []);
  }

  #readFile(path: string): UserPlacement | null {
    const bytes = readIfThere(path);
    if (bytes === undefined) return null;
    const decoded = decodeRevision(bytes, REVISION);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "damaged") return null;
    const { user, ...placement } = JSON.parse(decoded.data) as { user: string } & Placement;
    return { user, placement };
  }

  async record(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    const current = this.#read(user);
    if (current !== null && !isDeepStrictEqual(current, from)) return current;
    const { root, ensureRoot } = this.#context;
    ensureRoot();
    const temp = join(root, scratchName("tmp"));
    try {
      makeFolder(this.#folder);
      const data = JSON.stringify({ user, ...to });
      await closeQuietly(await writeNewFile(temp, encodeRevision(REVISION, scratchName("tmp"), data)));
      await rename(temp, this.#pathOf(user));
      await syncFolder(this.#folder);
      return to;
    } catch (error) {
      await unlinkQuietly(temp);
      throw mediumError("write", this.#folder, error);
    }
  }

  #pathOf(user: string): string {
    return join(this.#folder, `${createHash("sha256").update(user).digest("hex").slice(0, 32)}.json`);
  }
}
