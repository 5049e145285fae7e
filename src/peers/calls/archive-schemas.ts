import { object, string, whole } from "./schemas.js";

/* The schemas of the calls that move the archive of a session to or from another host. */

const count = whole(Number.MAX_SAFE_INTEGER);

export const namedArchive = object({ name: string });
export const writtenArchive = object({ name: string, bytes: count, leftOut: count });
export const archivePart = object({ bytes: string });
