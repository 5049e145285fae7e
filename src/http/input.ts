import { isUtf8 } from "node:buffer";
import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import * as v from "valibot";
import { FleetError, quote } from "../base/errors.js";
import { IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_ALLOWED } from "../base/ids.js";
import type { Share } from "../door/state/shares.js";
import { type ScanLimits, scanWithin } from "../runtime/wire/scan.js";
import { invalid } from "./problem.js";
import type { AnyRoute } from "./route.js";
import { NAME } from "./routes/fields.js";
import type { Request } from "./visit.js";

type Inputs = Pick<AnyRoute, "params" | "query" | "body" | "isBodyOptional">;

interface Given {
  params: Record<string, string>;
  query: Record<string, string[]>;
  body: unknown;
}

/** Checks the input of a request against the schemas of its route. @throws FleetError `FLEET_USAGE_INVALID`. */
export function readInput(route: Inputs, { params, query, body }: Given) {
  const given = body ?? (route.isBodyOptional === true ? {} : body);
  if (route.body !== null && given === null) throw invalid("The request needs a body: a JSON object.");
  return {
    params: read(route.params, params, "The path") as Record<string, string>,
    query: read(route.query ?? NO_QUERY, single(query), "The query"),
    body: read(route.body, given, "The body"),
  };
}

/**
 * The key in the header `Idempotency-Key`; undefined without this header. Clients may quote the key, because the draft
 * standard defines the header as a structured field.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`.
 */
export function idempotencyKeyIn(header: string | undefined): string | undefined {
  const key = header?.replace(/^"(.*)"$/, "$1");
  if (key === undefined || IDEMPOTENCY_KEY.test(key)) return key;
  throw invalid(`The header "Idempotency-Key" is ${quote(key)}. Allowed: ${IDEMPOTENCY_KEY_ALLOWED}.`);
}

const NO_QUERY = v.strictObject({});

function read(schema: v.GenericSchema | null, given: unknown, where: string): unknown {
  if (schema === null) return undefined;
  const result = v.safeParse(schema, given);
  if (result.success) return result.output;
  throw invalid(problemOf(result.issues, where));
}

/** Refuses a query that contains a parameter more than once, because programs disagree on what that means. */
function single(query: Record<string, string[]>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(query).map(([name, values]) => {
      if (values.length > 1) throw invalid(`The query has ${quote(name)} ${values.length} times.`);
      return [name, values[0] ?? ""];
    }),
  );
}

/** @returns the first problem, as a sentence */
function problemOf([issue]: [v.BaseIssue<unknown>, ...unknown[]], where: string): string {
  const keys = issue.path?.map(({ key }) => key);
  // The numbers are positions in lists.
  const name = keys?.filter((key) => typeof key === "string").join(".");
  if (name === undefined) return `${where} is not ${issue.message}.`;
  if (issue.type === "strict_object" && issue.expected === "never")
    return `${where} has the field ${quote(name)}, which this route does not know.`;
  if (issue.input === undefined) return `${name} is missing.`;
  if (issue.message.includes(NAME)) return issue.message.replaceAll(NAME, name);
  return `${name} is ${quote(issue.input)}. Allowed: ${issue.message}`;
}

/**
 * The limits for the JSON in a body. Many small values take long to parse, and the process serves nobody else in that
 * time. The front door has such limits, too.
 */
const LIMITS: ScanLimits = { depth: 32, values: 50_000 };
const JSON_TYPE = /^application\/(?:[\w.-]+\+)?json\s*(?:;\s*charset="?utf-8"?\s*)?$/i;

/** The part of the user's {@link Share} that counts the bytes of a body. */
type Counted = Pick<Share, "buffers" | "overBytes">;

/**
 * Reads the body of a request as a JSON object, and returns null if the body is empty. Counts each byte against the
 * user's limits as soon as it arrives. Reads from the Node.js request, because creating Hono's `Request` takes longer
 * than reading the body.
 *
 * @throws FleetError `FLEET_CONTENT_TOO_LARGE`, `FLEET_USAGE_INVALID`, `FLEET_LIMIT_REACHED`; another error when the
 * client disconnects before the end of the body.
 */
export async function readBody({ req, env }: Request, maxBytes: number, share: Counted): Promise<unknown> {
  if (Number(req.header("Content-Length") ?? 0) > maxBytes) throw tooLarge(maxBytes);
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of chunksOf(env.incoming)) {
    bytes += chunk.byteLength;
    if (bytes > maxBytes) throw tooLarge(maxBytes);
    chunks.push(chunk);
    share.buffers(bytes);
    if (share.overBytes !== null) throw share.overBytes;
  }
  if (bytes === 0) return null;
  if (!JSON_TYPE.test(req.header("Content-Type") ?? ""))
    throw invalid("The header Content-Type must be application/json, in UTF-8.");
  if (req.header("Content-Encoding") !== undefined) throw invalid("The body must not be compressed.");
  return parse(Buffer.concat(chunks));
}

/**
 * Yields the body in chunks. Does not use the iterator of Node.js, because that iterator loses a complete body if the
 * client has disconnected, and destroys the request when the caller stops reading.
 */
async function* chunksOf(incoming: IncomingMessage): AsyncGenerator<Buffer, void, undefined> {
  for (;;) {
    const chunk: Buffer | null = incoming.read();
    if (chunk !== null) yield chunk;
    else if (incoming.complete) return;
    else if (incoming.destroyed) throw new Error("The client has gone.");
    else await once(incoming, "readable");
  }
}

function parse(body: Buffer): unknown {
  if (!isUtf8(body)) throw invalid("The body is not UTF-8.");
  const scan = scanWithin(body, LIMITS);
  if (scan === null) throw invalid("The body is not a JSON object.");
  if (scan.over !== null)
    throw invalid(`The body has more than ${LIMITS[scan.over]} ${scan.over === "depth" ? "levels" : "values"}.`);
  const fields = parseJson(body);
  // `JSON.parse` merges fields with equal names, even if one name is written with escapes. So it returns fewer fields
  // than the scan found if a name occurs twice.
  if (Object.keys(fields).length < scan.members.length) throw invalid("The body has a field twice.");
  return fields;
}

function parseJson(body: Buffer): object {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch {
    throw invalid("The body is not JSON.");
  }
}

function tooLarge(maxBytes: number): FleetError {
  return new FleetError("FLEET_CONTENT_TOO_LARGE", `The body has more than ${maxBytes} bytes, which is the limit.`, {
    suggestions: ["Send less.", "An operator can raise serve.maxFrame."],
  });
}
