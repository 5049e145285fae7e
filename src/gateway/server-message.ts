import { isId, type RpcId } from "./client-message.js";
import { PARSE_ERROR, ProtocolError } from "./frames.js";
import { type Member, plainString, scanObject } from "./scan.js";

/** What a server sent, as far as the front door has to know it. The frame itself passes on as it came. */
export type ServerMessage =
  | { kind: "response"; id: RpcId; failed: boolean; idAt: Member }
  | { kind: "request"; id: RpcId; method: string; sessionId: string | undefined; idAt: Member }
  /** `eventType`: of an event, or of what happened in the session's life. */
  | { kind: "notification"; method: string; sessionId: string | undefined; eventType: string | undefined };

/** How the runtime begins most of its frames: those are read without looking at the rest. */
const EVENT = Buffer.from('{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"');
const EVENT_TYPE = '","event":{"type":"';
/** On a server where others are, too, most frames are these: every session's, to every client. */
const LIFECYCLE = Buffer.from('{"jsonrpc":"2.0","method":"session.lifecycle","params":{"type":"');
const LIFECYCLE_SESSION = '","sessionId":"';
const LONGEST_NAME = 200;

/**
 * @returns null for what is no message of JSON-RPC, or has an id that nothing of ours has.
 * @throws ProtocolError for what is not JSON, as far as that is looked at.
 */
export function readServerFrame(body: Buffer): ServerMessage | null {
  return readEvent(body) ?? readLifecycle(body) ?? readAny(body);
}

/** Writers of JSON do not write a key twice, so what the beginning says is all there is to know. */
function readEvent(body: Buffer): ServerMessage | null {
  const names = readNames(body, EVENT, EVENT_TYPE);
  if (names === null) return null;
  const [sessionId, eventType] = names;
  return { kind: "notification", method: "session.event", sessionId, eventType };
}

function readLifecycle(body: Buffer): ServerMessage | null {
  const names = readNames(body, LIFECYCLE, LIFECYCLE_SESSION);
  if (names === null) return null;
  const [eventType, sessionId] = names;
  return { kind: "notification", method: "session.lifecycle", sessionId, eventType };
}

/** The two strings behind this beginning, with `between` between them; null for what is otherwise, or has escapes. */
function readNames(body: Buffer, beginning: Buffer, between: string): [string, string] | null {
  if (body.length < beginning.length || beginning.compare(body, 0, beginning.length) !== 0) return null;
  const text = body.toString("latin1", beginning.length, beginning.length + 2 * LONGEST_NAME);
  const firstEnd = text.indexOf('"');
  if (firstEnd === -1 || !text.startsWith(between, firstEnd)) return null;
  const start = firstEnd + between.length;
  const end = text.indexOf('"', start);
  if (end === -1) return null;
  const names: [string, string] = [text.slice(0, firstEnd), text.slice(start, end)];
  return names.every((name) => PLAIN.test(name)) ? names : null;
}

/** Without escapes, and the same in every encoding. */
const PLAIN = /^[\x20-\x5b\x5d-\x7e]*$/;

function readAny(body: Buffer): ServerMessage | null {
  const found = scanObject(body);
  if (found === null) parse(body);
  const members = byKey(found);
  const [idAt, methodAt, paramsAt] = [members.get("id"), members.get("method"), members.get("params")];
  const id = idAt && readId(body, idAt);
  if (methodAt === undefined) {
    if (idAt === undefined || id === undefined) return null;
    return { kind: "response", id, failed: members.has("error"), idAt };
  }
  const method = plainString(body, methodAt);
  if (method === undefined) return null;
  const params = byKey(paramsAt ? scanObject(body, paramsAt.start) : null);
  const sessionId = stringAt(body, params.get("sessionId"));
  if (idAt !== undefined) return id === undefined ? null : { kind: "request", id, method, sessionId, idAt };
  const eventAt = params.get("event");
  const event = byKey(eventAt ? scanObject(body, eventAt.start) : null);
  const typeAt = method === "session.lifecycle" ? params.get("type") : event.get("type");
  return { kind: "notification", method, sessionId, eventType: stringAt(body, typeAt) };
}

function byKey(members: Member[] | null): Map<string, Member> {
  return new Map(members?.map((member) => [member.key, member]));
}

function stringAt(body: Buffer, member: Member | undefined): string | undefined {
  return member && plainString(body, member);
}

function readId(body: Buffer, { start, end }: Member): RpcId | undefined {
  const value = parse(body, start, end);
  return isId(value) ? value : undefined;
}

/** What a server said, or a part of it. @throws ProtocolError when that is not JSON. */
export function parse(body: Buffer, start = 0, end = body.length): unknown {
  try {
    return JSON.parse(body.toString("utf8", start, end));
  } catch {
    // The parser's own message quotes what was said.
    throw new ProtocolError("A frame is not JSON.", PARSE_ERROR);
  }
}
