import * as v from "valibot";
import { isFleetError } from "../../base/errors.js";
import { parseDuration } from "../../base/values/measures.js";
import { compareText } from "../../base/values/text.js";
import { label as checkLabel } from "../../operations/fields.js";
import { invalid } from "../problem.js";

/* Parts that the schemas of several requests share. */

const LONGEST_TEXT = 200;

/** A text that the library checks, in the same words as at every other entry point. */
export const text = v.string("a string");

/** Stands for the name of the field in the message of a {@link checked} field. */
export const NAME = "\0";

/** Checks a text as the library does, if the library does not get it, or gives it another name. */
export function checked(check: (value: string, name: string) => unknown) {
  return v.rawCheck<string>(({ dataset, addIssue }) => {
    if (!dataset.typed) return;
    try {
      check(dataset.value, NAME);
    } catch (error) {
      if (!isFleetError(error)) throw error;
      addIssue({ message: error.message });
    }
  });
}

/** Adds a description, which the OpenAPI document shows. */
export const described = <T extends v.GenericSchema>(schema: T, description: string) =>
  v.pipe(schema, v.description(description));

export const label = v.pipe(text, checked(checkLabel), v.maxLength(LONGEST_TEXT));

export const object = <Entries extends v.ObjectEntries>(entries: Entries) => v.strictObject(entries, "a JSON object");

const ALLOWED_BASE64 = "base64";
const ALLOWED_ATTACHMENTS = "a list of at most 20 attachments";
const attachment = object({
  type: described(v.picklist(["blob"], "blob"), "The content itself. No route reads files of the server."),
  data: v.pipe(v.string(ALLOWED_BASE64), v.base64(ALLOWED_BASE64), v.description("The content, in base64.")),
  mimeType: v.pipe(
    v.string("a MIME type"),
    v.maxLength(LONGEST_TEXT, "a MIME type"),
    v.regex(/^[\w.+-]+\/[\w.+-]+$/, "a MIME type"),
    v.description("Such as `image/png`."),
  ),
  displayName: v.optional(label),
});

export const attachments = v.pipe(v.array(attachment, ALLOWED_ATTACHMENTS), v.maxLength(20, ALLOWED_ATTACHMENTS));

const ALLOWED_TOOLS = "a list of at most 100 names or patterns of tools";

export const tools = v.pipe(
  v.array(label, ALLOWED_TOOLS),
  v.maxLength(100, ALLOWED_TOOLS),
  v.description(
    "The tools that the session has, such as `builtin:view`. Default: those of the configuration, which also limit this list.",
  ),
);

/** The longest turn, in milliseconds. */
export const TURN_MS = 3_600_000;
export const turnTimeout = v.optional(
  v.pipe(
    text,
    checked((given, name) => parseDuration(given, { name, maxMs: TURN_MS })),
    v.description("How long the turn may take before it is aborted. Default and maximum: an hour."),
  ),
);

/** Returns the fields whose value is not undefined. */
export function given<T extends object>(fields: T): { [Name in keyof T]?: Exclude<T[Name], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;
}

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
