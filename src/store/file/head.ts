import { lstatSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../errors.js";
import { busyError, mediumError, newerError } from "./failures.js";
import { decodeRevision, revisionName, revisionNumber } from "./revision.js";

/** What is in a document's folder. */
export interface Listing {
  /** Highest first. */
  revisions: number[];
  /** Everything else: scratch files of writers, quarantined copies. */
  others: string[];
}

export interface Head {
  /** The newest revision that is whole, or 0. */
  rev: number;
  /** Its data, or undefined when `rev` is 0. */
  data: string | undefined;
  /** The highest number taken, by a damaged revision too, or 0. */
  top: number;
  /** The revisions above `rev`, which are damaged. */
  damaged: { rev: number; reason: string }[];
  /** Names beside the revisions. */
  others: string[];
}

/** The data of a document that ends in a tombstone (`tombstone.ts`): it is deleted, until its folder is gone. */
export const TOMBSTONE = "null";

/** A file that is gone between listing and reading is possible, this many times in a row it is not. */
const MAX_ATTEMPTS = 100;

/** @returns undefined when the folder is not there. */
export function listFolder(folder: string): Listing | undefined {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw mediumError("read", folder, error);
  }
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
 * Finds the newest whole revision among the newest `keep` numbers. Lower ones are never looked at: they are either
 * pruned soon, or were linked by a writer that slept so long that its number had been pruned, and then hold a past that
 * never was.
 *
 * @returns undefined when the folder is not there. @throws FleetError `FLEET_STATE_NEWER`.
 */
export function readHead(folder: string, keep: number): Head | undefined {
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    const listing = listFolder(folder);
    if (listing === undefined) return undefined;
    const head = newestWhole(folder, listing, keep);
    if (head !== "moved") return head;
  }
  throw busyError(folder, "could not be read: it changed under every attempt");
}

function newestWhole(folder: string, { revisions, others }: Listing, keep: number): Head | "moved" {
  const top = revisions[0] ?? 0;
  const damaged: Head["damaged"] = [];
  for (const rev of revisions) {
    if (rev <= top - keep) break;
    const path = join(folder, revisionName(rev));
    const bytes = readIfThere(path);
    if (bytes === undefined && isTombstone(path)) return { rev, data: TOMBSTONE, top, damaged, others };
    // Pruned since the listing, so there is a newer head; or the whole folder was removed.
    if (bytes === undefined) return "moved";
    const decoded = decodeRevision(bytes, rev);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "good") return { rev, data: decoded.data, top, damaged, others };
    damaged.push({ rev, reason: decoded.reason });
  }
  return { rev: 0, data: undefined, top, damaged, others };
}

/** @returns undefined when there is no such file. */
export function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw mediumError("read", path, error);
  }
}

function isTombstone(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true;
}
