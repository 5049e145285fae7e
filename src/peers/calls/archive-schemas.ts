import * as v from "valibot";
import type { Purged } from "../../data/purge/purge.js";
import { list, object, type Schema, string, whole } from "./schemas.js";

/* The schemas of the calls that move the archive of a session to or from another host, or erase the data of a user. */

const count = whole(Number.MAX_SAFE_INTEGER);

export const namedArchive = object({ name: string });
export const writtenArchive = object({ name: string, bytes: count, leftOut: count });
export const archivePart = object({ bytes: string });

export const purged: Schema<Purged> = object({
  sessions: count,
  servers: count,
  tokens: count,
  bytes: count,
  remains: list(object({ host: v.nullable(string), what: string, why: string })),
});
