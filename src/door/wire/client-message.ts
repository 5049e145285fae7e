import { isUtf8 } from "node:buffer";
import { isObject } from "../../base/values/text.js";
import { ACKNOWLEDGE, encodeBody, PARSE_ERROR, ProtocolError } from "../../runtime/wire/frames.js";
import {
  isId,
  type Member,
  plainString,
  type RpcId,
  type ScanLimits,
  scanObject,
  scanWithin,
} from "../../runtime/wire/scan.js";

export type Params = Record<string, unknown>;

export interface ClientRequest {
  kind: "request";
  id: RpcId;
  method: string;
  /** Empty if the request had none. */
  params: Params;
  /** The length of the message, in bytes. */
  bytes: number;
}

/**
 * A client's message. The door reads each frame once into this value, and checks the value. The server gets a new
 * message, which the door builds from the value.
 */
export type ClientMessage =
  | ClientRequest
  | { kind: "notification"; method: string }
  /** A malformed request whose id could be read. The door answers it with this error. */
  | { kind: "unfit"; id: RpcId; rpcCode: number; message: string }
  | { kind: "response"; id: RpcId; withId: WithId };

/** Returns the frame of the same message under another id. `filter` can replace the result. */
export type WithId = (id: RpcId, filter?: (result: unknown) => unknown) => Buffer;

/**
 * The limits for one message.
 *
 * - depth: the runtime's JSON parser fails at 128 levels (measured with 1.0.85).
 * - values: many small values take long to parse, and the door serves nobody else in that time. Parsing and writing a
 *   message at this limit takes up to 50 ms (Node 20.20).
 */
const LIMITS: ScanLimits = { depth: 127, values: 50_000 };
const OVER: Record<keyof ScanLimits, string> = {
  depth: `The message is nested more than ${LIMITS.depth} levels deep.`,
  values: `The message has more than ${LIMITS.values} values. A long text may be one string.`,
};
/** If a message over the limits is longer than this, in bytes, we do not search it for its id. */
const SEARCHED_BYTES = 1024 * 1024;
const BACKSLASH = 0x5c;
const LETTER_U = 0x75;
const ESCAPE_LENGTH = "\\uXXXX".length;
const KEYS = new Set(["jsonrpc", "id", "method", "params", "result", "error"]);

const ACKNOWLEDGEMENT_BODY = Buffer.from(JSON.stringify({ jsonrpc: "2.0", method: ACKNOWLEDGE }));
const ACKNOWLEDGEMENT: ClientMessage = { kind: "notification", method: ACKNOWLEDGE };

const INVALID_REQUEST = -32600;
const INVALID_PARAMS = -32602;

/**
 * Reads a client's frame. Refuses duplicate keys, escapes in keys, batches and bytes that are not UTF-8, because the
 * server might read these differently than the door.
 *
 * @throws ProtocolError when the frame is not a JSON-RPC message.
 */
export function readClientFrame(body: Buffer): ClientMessage {
  // Check for an acknowledgement first, because it is frequent: clients of the fleet send one for each chunk.
  if (body.equals(ACKNOWLEDGEMENT_BODY)) return ACKNOWLEDGEMENT;
  if (!isUtf8(body)) throw new ProtocolError("A frame is not UTF-8.", PARSE_ERROR);
  const scan = scanWithin(body, LIMITS);
  if (scan === null) throw new ProtocolError("A frame is not a JSON object.", INVALID_REQUEST);
  const byKey = membersByKey(scan.members);
  if (scan.over !== null) return refuseOver(body, byKey, OVER[scan.over]);
  assertVersion(body, byKey);
  const message = byKey.has("method") ? readCall(body, byKey) : readResponse(body, byKey);
  if (message.kind === "notification" || !hasHalves(body)) return message;
  return unanswerable(body, byKey, "The message contains half of a surrogate pair.");
}

function membersByKey(members: readonly Member[]): Map<string, Member> {
  const byKey = new Map(members.map((member) => [member.key, member]));
  if (byKey.size < members.length || members.some(({ key }) => !KEYS.has(key))) {
    throw new ProtocolError("A frame has a duplicate key, or a key that JSON-RPC does not define.", INVALID_REQUEST);
  }
  return byKey;
}

function assertVersion(body: Buffer, members: ReadonlyMap<string, Member>): void {
  const version = members.get("jsonrpc");
  if (version === undefined || plainString(body, version) !== "2.0") {
    throw new ProtocolError('A frame does not contain "jsonrpc":"2.0".', INVALID_REQUEST);
  }
}

/** @param seen the members up to the one that exceeds a limit */
function refuseOver(body: Buffer, seen: ReadonlyMap<string, Member>, message: string): ClientMessage {
  const isKnown = seen.has("jsonrpc") && seen.has("id") && (seen.has("method") || !seen.has("params"));
  // Some writers put the id last. If the message is too long to search for it, end the connection, because we cannot
  // answer a request without its id.
  if (!isKnown && body.length > SEARCHED_BYTES) throw new ProtocolError(message, INVALID_REQUEST);
  const members = isKnown ? seen : membersByKey(scanObject(body) ?? []);
  assertVersion(body, members);
  return unanswerable(body, members, message);
}

/**
 * Turns a message that the runtime would drop silently into an error, so that nobody waits in vain. If the message is a
 * client's request, the client gets the error. If it is a client's answer, the server gets the error as that answer.
 */
function unanswerable(body: Buffer, members: ReadonlyMap<string, Member>, message: string): ClientMessage {
  const member = members.get("id");
  if (member === undefined) {
    const name = members.get("method");
    const method = name && plainString(body, name);
    if (method !== undefined) return { kind: "notification", method };
  }
  const id = member && parseId(body.toString("utf8", member.start, member.end));
  if (id === undefined) throw new ProtocolError(message, INVALID_REQUEST);
  if (members.has("method")) return unfit(id, message);
  const answer = { jsonrpc: "2.0", error: { code: INVALID_PARAMS, message } };
  return { kind: "response", id, withId: (other) => encodeBody(Buffer.from(JSON.stringify({ ...answer, id: other }))) };
}

/**
 * Whether the message contains half of a surrogate pair, such as half of an emoji. JavaScript accepts that, but the
 * runtime does not. In valid UTF-8, half of a pair can only be written as an escape, such as `\ud83d`.
 */
function hasHalves(body: Buffer): boolean {
  if (!body.includes("\\ud") && !body.includes("\\uD")) return false;
  /** Where the second half of a pair must begin; -1 if the last escape was not a first half. */
  let owed = -1;
  for (let at = 0; at < body.length; at++) {
    if (body[at] !== BACKSLASH) continue;
    const half = body[at + 1] === LETTER_U ? halfAt(body, at + 2) : "none";
    const isFit = owed === -1 ? half !== "second" : at === owed && half === "second";
    if (!isFit) return true;
    owed = half === "first" ? at + ESCAPE_LENGTH : -1;
    at++; // skip the escaped character, which may be a backslash
  }
  return owed !== -1;
}

/**
 * Which half of a pair the four hexadecimal digits encode: D800 to DBFF is a first half, DC00 to DFFF a second half.
 */
function halfAt(body: Buffer, at: number): "first" | "second" | "none" {
  if (String.fromCharCode(body[at] ?? 0).toLowerCase() !== "d") return "none";
  const second = Number.parseInt(String.fromCharCode(body[at + 1] ?? 0), 16);
  if (second >= 0xc) return "second";
  return second >= 0x8 ? "first" : "none";
}

function readCall(body: Buffer, members: ReadonlyMap<string, Member>): ClientMessage {
  if (members.has("result") || members.has("error")) {
    throw new ProtocolError("A frame is both a request and a response.", INVALID_REQUEST);
  }
  const { id, method, params: given } = parse(body);
  // `vscode-jsonrpc` writes an omitted argument as `[null]`.
  const isEmpty = Array.isArray(given) && given.every((value) => value === null);
  const params = isEmpty ? {} : (given ?? {});
  if (typeof method !== "string" || !/^[\x21-\x7e]{1,200}$/.test(method)) {
    throw new ProtocolError("The method of a request is not a name.", INVALID_REQUEST);
  }
  if (!members.has("id")) return { kind: "notification", method };
  if (!isId(id)) throw new ProtocolError("The id of a request is not a string or whole number.", INVALID_REQUEST);
  if (!isObject(params)) return unfit(id, "params must be an object, because parameters have names.");
  const member = members.get("params");
  if (member !== undefined && hasDoubtfulKeys(body, member))
    return unfit(id, "params has a duplicate key, or a key with an escape sequence.");
  return { kind: "request", id, method, params, bytes: body.length };
}

function unfit(id: RpcId, message: string): ClientMessage {
  return { kind: "unfit", id, rpcCode: INVALID_PARAMS, message };
}

/** A client's answer may be large and contain anything. So the server gets it unchanged, except for the id. */
function readResponse(body: Buffer, members: ReadonlyMap<string, Member>): ClientMessage {
  const member = members.get("id");
  if (member === undefined || members.has("result") === members.has("error")) {
    throw new ProtocolError("A frame is neither a request nor a response.", INVALID_REQUEST);
  }
  const id = parseId(body.toString("utf8", member.start, member.end));
  if (id === undefined)
    throw new ProtocolError("The id of a response is not a string or whole number.", INVALID_REQUEST);
  const withId: WithId = (other, filter) => {
    if (filter === undefined || !members.has("result")) return replaceId(body, member, other);
    const result = filter((parse(body) as { result?: unknown }).result);
    return encodeBody(Buffer.from(JSON.stringify({ jsonrpc: "2.0", id: other, result })));
  };
  return { kind: "response", id, withId };
}

/** @returns the frame of the same message with `id` in place of the bytes from `start` to `end` */
export function replaceId(body: Buffer, { start, end }: { start: number; end: number }, id: RpcId): Buffer {
  const before = body.subarray(0, start);
  return encodeBody(Buffer.concat([before, Buffer.from(JSON.stringify(id)), body.subarray(end)]));
}

function parse(body: Buffer): { id?: unknown; method?: unknown; params?: unknown } {
  try {
    return JSON.parse(body.toString("utf8")) as object;
  } catch (cause) {
    throw new ProtocolError(`A frame is not JSON: ${cause instanceof Error ? cause.name : "error"}.`, PARSE_ERROR);
  }
}

function parseId(text: string): RpcId | undefined {
  try {
    const id: unknown = JSON.parse(text);
    return isId(id) ? id : undefined;
  } catch {
    return undefined; // not JSON
  }
}

function hasDoubtfulKeys(body: Buffer, { start }: Member): boolean {
  const keys = (scanObject(body, start) ?? []).map(({ key }) => key);
  return new Set(keys).size < keys.length || keys.some((key) => key.includes("\\"));
}
