import { isUtf8 } from "node:buffer";
import { encodeBody, ProtocolError } from "./frames.js";
import { type Member, plainString, scanObject } from "./scan.js";

/** JSON-RPC 2.0 allows null, too, in what it calls an unwise use; fractions and huge numbers name nothing reliably. */
export type RpcId = string | number;
export type Params = Record<string, unknown>;

export interface ClientRequest {
  kind: "request";
  id: RpcId;
  method: string;
  /** Empty if the request had none. */
  params: Params;
}

/** What a client sent, read once and strictly: this is what is judged, and what a server gets is made from it. */
export type ClientMessage =
  | ClientRequest
  | { kind: "notification"; method: string }
  /** A request whose id is known and that is to be answered with this error instead of being judged. */
  | { kind: "unfit"; id: RpcId; rpcCode: number; message: string }
  | { kind: "response"; id: RpcId; withId(id: RpcId): Buffer };

/** serde_json, which reads the other end, gives up at 128; and what is stringified again is so recursively. */
const MAX_DEPTH = 120;
const KEYS = new Set(["jsonrpc", "id", "method", "params", "result", "error"]);
const MAX_ID_LENGTH = 256;

const INVALID_REQUEST = -32600;
const INVALID_PARAMS = -32602;
const PARSE_ERROR = -32700;

/**
 * Reads a client's frame. Two readers of one text can differ over keys that occur twice, over escapes in keys, batches and
 * bytes that are not UTF-8: none of these gets through.
 *
 * @throws ProtocolError for what is no JSON-RPC message.
 */
export function readClientFrame(body: Buffer): ClientMessage {
  if (!isUtf8(body)) throw new ProtocolError("A frame is not UTF-8.", PARSE_ERROR);
  const members = scanObject(body, 0, MAX_DEPTH);
  if (members === null) throw new ProtocolError("A frame is not a JSON object, or nested too deeply.", INVALID_REQUEST);
  const byKey = new Map(members.map((member) => [member.key, member]));
  if (byKey.size < members.length || members.some(({ key }) => !KEYS.has(key))) {
    throw new ProtocolError("A frame has a key twice, or one that JSON-RPC does not have.", INVALID_REQUEST);
  }
  const version = byKey.get("jsonrpc");
  if (version === undefined || plainString(body, version) !== "2.0") {
    throw new ProtocolError('A frame does not say "jsonrpc":"2.0".', INVALID_REQUEST);
  }
  return byKey.has("method") ? readCall(body, byKey) : readResponse(body, byKey);
}

function readCall(body: Buffer, members: ReadonlyMap<string, Member>): ClientMessage {
  if (members.has("result") || members.has("error")) {
    throw new ProtocolError("A frame is both a request and a response.", INVALID_REQUEST);
  }
  const { id, method, params = {} } = parse(body);
  if (typeof method !== "string" || !/^[\x21-\x7e]{1,200}$/.test(method)) {
    throw new ProtocolError("The method of a request is not a name.", INVALID_REQUEST);
  }
  if (!members.has("id")) return { kind: "notification", method };
  if (!isId(id)) throw new ProtocolError("The id of a request is not a string or whole number.", INVALID_REQUEST);
  if (!isParams(params)) {
    return { kind: "unfit", id, rpcCode: INVALID_PARAMS, message: "params must be an object: parameters have names." };
  }
  const given = members.get("params");
  if (given !== undefined && hasDoubtfulKeys(body, given)) {
    return { kind: "unfit", id, rpcCode: INVALID_PARAMS, message: "params has a key twice, or one with an escape." };
  }
  return { kind: "request", id, method, params };
}

/** What the client answers may be large and of any content: all but the id passes as it is. */
function readResponse(body: Buffer, members: ReadonlyMap<string, Member>): ClientMessage {
  const member = members.get("id");
  if (member === undefined || members.has("result") === members.has("error")) {
    throw new ProtocolError("A frame is neither a request nor a response.", INVALID_REQUEST);
  }
  const id = parseId(body.toString("utf8", member.start, member.end));
  if (id === undefined)
    throw new ProtocolError("The id of a response is not a string or whole number.", INVALID_REQUEST);
  return { kind: "response", id, withId: (other) => replaceId(body, member, other) };
}

/** The same message under another id, framed. */
export function replaceId(body: Buffer, { start, end }: { start: number; end: number }, id: RpcId): Buffer {
  const before = body.subarray(0, start);
  return encodeBody(Buffer.concat([before, Buffer.from(JSON.stringify(id)), body.subarray(end)]));
}

export function isId(value: unknown): value is RpcId {
  return typeof value === "string" ? value.length <= MAX_ID_LENGTH : Number.isSafeInteger(value);
}

function isParams(value: unknown): value is Params {
  return typeof value === "object" && value !== null && !Array.isArray(value);
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
    return undefined; // not JSON either
  }
}

function hasDoubtfulKeys(body: Buffer, { start }: Member): boolean {
  const keys = (scanObject(body, start) ?? []).map(({ key }) => key);
  return new Set(keys).size < keys.length || keys.some((key) => key.includes("\\"));
}
