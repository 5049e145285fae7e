import { compareText } from "../../config/values/text.js";
import { invalid } from "../problem.js";

interface Entry {
  id: string;
  createdAt: string;
}

/** The place of an entry in the list. */
type Place = readonly [createdAt: string, id: string];

/**
 * One page of a list, the newest entries first. The order depends only on the creation time and the id, which never
 * change. So a client that reads all pages sees each entry once, even if entries are used, added or deleted in between.
 */
export function pageOf<T extends Entry>(
  entries: readonly T[],
  { limit, cursor }: { limit: number; cursor?: string | undefined },
): { page: T[]; next: string | null } {
  const after = cursor === undefined ? null : readCursor(cursor);
  const sorted = entries.toSorted((a, b) => compare([a.createdAt, a.id], [b.createdAt, b.id]));
  const rest = after === null ? sorted : sorted.filter(({ createdAt, id }) => compare([createdAt, id], after) > 0);
  const page = rest.slice(0, limit);
  const last = page.at(-1);
  return { page, next: last === undefined || rest.length <= limit ? null : writeCursor([last.createdAt, last.id]) };
}

function compare(a: Place, b: Place): number {
  return compareText(b[0], a[0]) || compareText(a[1], b[1]);
}

function writeCursor(place: Place): string {
  return Buffer.from(JSON.stringify(place)).toString("base64url");
}

/** Reads the place in a cursor. A cursor needs no signature, because it gives access to nothing. */
function readCursor(cursor: string): Place {
  try {
    const place: unknown = JSON.parse(Buffer.from(cursor, "base64url").toString("utf8"));
    const [createdAt, id] = Array.isArray(place) ? (place as unknown[]) : [];
    if (typeof createdAt === "string" && typeof id === "string") return [createdAt, id];
  } catch {
    // The cursor is not JSON, so it is refused below.
  }
  throw invalid("The cursor does not come from an earlier answer.");
}
