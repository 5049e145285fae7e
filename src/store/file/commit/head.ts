import { lstatSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { busyError, newerError } from "../../failures.js";
import { readIfThere } from "../failures.js";
import { decodeRevision, revisionName, revisionNumber } from "./revision.js";

export interface Listing {
  /** Highest first. */
  revisions: number[];
  /** All other names: scratch files of writers, and kept copies of damaged files. */
  others: string[];
}

export interface Head {
  /** The newest undamaged revision, or 0. */
  rev: number;
  /** The data of the revision `rev`, or undefined when `rev` is 0. */
  data: string | undefined;
  /** The highest number in the folder, including damaged revisions, or 0. */
  top: number;
  /** The damaged revisions, which are all above `rev`. */
  damaged: { rev: number; reason: string }[];
  /** As in {@link Listing}. */
  others: string[];
}

/** The data of a deleted document. Its newest revision is a tombstone: see `raiseTombstone`. */
export const TOMBSTONE = "null";

/** How often {@link readHead} lists the folder before it gives up. A listed file may disappear before it is read. */
const MAX_ATTEMPTS = 100;

/** The names in a document's folder; undefined if the folder does not exist. */
export function listFolder(folder: string): Listing | undefined {
  const names = readIfThere(folder, () => readdirSync(folder));
  if (names === undefined) return undefined;
  const listing: Listing = { revisions: [], others: [] };
  for (const name of names) {
    const rev = revisionNumber(name);
    if (rev === undefined) listing.others.push(name);
    else listing.revisions.push(rev);
  }
  listing.revisions.sort((a, b) => b - a);
  return listing;
}

/**
 * Finds the newest undamaged revision among the newest `keep` numbers. It ignores lower numbers: a suspended writer may
 * have linked such a number after it was pruned, and the revision was then never the head.
 *
 * @returns undefined when the folder does not exist
 */
export function readHead(folder: string, keep: number): Head | undefined {
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    const listing = listFolder(folder);
    if (listing === undefined) return undefined;
    const head = newestWhole(folder, listing, keep);
    if (head !== "moved") return head;
  }
  throw busyError(folder, "could not be read: it changed during every attempt");
}

function newestWhole(folder: string, { revisions, others }: Listing, keep: number): Head | "moved" {
  const top = revisions[0] ?? 0;
  const damaged: Head["damaged"] = [];
  for (const rev of revisions) {
    if (rev <= top - keep) break;
    const path = join(folder, revisionName(rev));
    const bytes = readIfThere(path, () => readFileSync(path));
    const isTombstone = bytes === undefined && lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true;
    if (isTombstone) return { rev, data: TOMBSTONE, top, damaged, others };
    // The revision was pruned after the listing because there is a newer one, or the whole folder was removed.
    if (bytes === undefined) return "moved";
    const decoded = decodeRevision(bytes, rev);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "good") return { rev, data: decoded.data, top, damaged, others };
    damaged.push({ rev, reason: decoded.reason });
  }
  return { rev: 0, data: undefined, top, damaged, others };
}
