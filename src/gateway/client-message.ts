import { isUtf8 } from "node:buffer";
import { encodeBody, PARSE_ERROR, ProtocolError } from "./frames.js";
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
  /** How long it was, in bytes. */
  bytes: number;
}

/** What a client sent, read once and strictly: this is what is judged, and what a server gets is made from it. */
export type ClientMessage =
  | ClientRequest
  | { kind: "notification"; method: string }
  /** A request whose id is known and that is to be answered with this error instead of being judged. */
  | { kind: "unfit"; id: RpcId; rpcCode: number; message: string }
  | { kind: "response"; id: RpcId; withId(id: RpcId): Buffer };

/** What the runtime takes (measured with 1.0.85): serde_json gives up at 128. */
const MAX_DEPTH = 127;
/** Of UTF-16: D800 to DBFF, and DC00 to DFFF. */
const [HALF_MASK, FIRST_HALF, SECOND_HALF] = [0xfc00, 0xd800, 0xdc00];
const ESCAPE_LENGTH = "\\uXXXX".length;
const KEYS = new Set(["jsonrpc", "id", "method", "params", "result", "error"]);
const MAX_ID_LENGTH = 256;

const INVALID_REQUEST = -32600;
const INVALID_PARAMS = -32602;

/**
 * Reads a client's frame. Two readers of one text can differ over keys that occur twice, over escapes in keys, batches and
 * bytes that are not UTF-8: none of these gets through.
 *
 * @throws ProtocolError for what is no JSON-RPC message.
 */
export function readClientFrame(body: Buffer): ClientMessage {
  if (!isUtf8(body)) throw new ProtocolError("A frame is not UTF-8.", PARSE_ERROR);
  const fit = scanObject(body, 0, MAX_DEPTH);
  const members = fit ?? scanObject(body);
  if (members === null) throw new ProtocolError("A frame is not a JSON object.", INVALID_REQUEST);
  const byKey = new Map(members.map((member) => [member.key, member]));
  if (byKey.size < members.length || members.some(({ key }) => !KEYS.has(key))) {
    throw new ProtocolError("A frame has a key twice, or one that JSON-RPC does not have.", INVALID_REQUEST);
  }
  const version = byKey.get("jsonrpc");
  if (version === undefined || plainString(body, version) !== "2.0") {
    throw new ProtocolError('A frame does not say "jsonrpc":"2.0".', INVALID_REQUEST);
  }
  if (fit === null) return unanswerable(body, byKey, `The message is nested more than ${MAX_DEPTH} levels deep.`);
  const message = byKey.has("method") ? readCall(body, byKey) : readResponse(body, byKey);
  if (message.kind === "notification" || !hasHalves(body)) return message;
  return unanswerable(body, byKey, "The message has half of a surrogate pair in it.");
}

/**
 * The runtime drops such a message without a word, and whoever waits for an answer waits for ever. Here they get one: the
 * client, or the server that it was to answer.
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
  if (members.has("method")) return { kind: "unfit", id, rpcCode: INVALID_PARAMS, message };
  const answer = { jsonrpc: "2.0", error: { code: INVALID_PARAMS, message } };
  return { kind: "response", id, withId: (other) => encodeBody(Buffer.from(JSON.stringify({ ...answer, id: other }))) };
}

/**
 * Whether there is half a surrogate pair in it, as of an emoji that was cut: JavaScript makes nothing of that, the runtime does.
 * In bytes that are UTF-8 it can only be an escape.
 */
function hasHalves(body: Buffer): boolean {
  if (!body.includes("\\ud") && !body.includes("\\uD")) return false;
  const text = body.toString("latin1");
  /** Where the second half of a pair has to be. */
  let owed = -1;
  for (let at = text.indexOf("\\u"); at !== -1; at = text.indexOf("\\u", at + 2)) {
    if (isEscaped(text, at)) continue;
    if (owed !== -1 && at > owed) return true;
    const half = Number.parseInt(text.slice(at + 2, at + 6), 16) & HALF_MASK;
    if ((half === SECOND_HALF) !== (at === owed)) return true;
    owed = half === FIRST_HALF ? at + ESCAPE_LENGTH : -1;
  }
  return owed !== -1;
}

/** Whether a backslash is one that stands for itself. */
function isEscaped(text: string, at: number): boolean {
  let before = at;
  while (text[before - 1] === "\\") before--;
  return (at - before) % 2 === 1;
}

function readCall(body: Buffer, members: ReadonlyMap<string, Member>): ClientMessage {
  if (members.has("result") || members.has("error")) {
    throw new ProtocolError("A frame is both a request and a response.", INVALID_REQUEST);
  }
  const { id, method, params: given } = parse(body);
  const params = isNothing(given) ? {} : given;
  if (typeof method !== "string" || !/^[\x21-\x7e]{1,200}$/.test(method)) {
    throw new ProtocolError("The method of a request is not a name.", INVALID_REQUEST);
  }
  if (!members.has("id")) return { kind: "notification", method };
  if (!isId(id)) throw new ProtocolError("The id of a request is not a string or whole number.", INVALID_REQUEST);
  if (!isParams(params)) {
    return { kind: "unfit", id, rpcCode: INVALID_PARAMS, message: "params must be an object: parameters have names." };
  }
  const member = members.get("params");
  if (member !== undefined && hasDoubtfulKeys(body, member)) {
    return { kind: "unfit", id, rpcCode: INVALID_PARAMS, message: "params has a key twice, or one with an escape." };
  }
  return { kind: "request", id, method, params, bytes: body.length };
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

/** No arguments, in any notation: `vscode-jsonrpc` writes one that is left out as `[null]`. */
function isNothing(params: unknown): boolean {
  return params === undefined || params === null || (Array.isArray(params) && params.every((value) => value === null));
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
