import { PARSE_ERROR, ProtocolError } from "./frames.js";
import { type Member, plainString, scanObject } from "./scan.js";

/** JSON-RPC 2.0 also allows null but discourages it. Fractions and huge numbers do not identify a request reliably. */
export type RpcId = string | number;

/**
 * The parts of a server's message that the front door needs. The door forwards the frame itself, and replaces at most
 * the id.
 */
export type ServerMessage =
  | { kind: "response"; id: RpcId; failed: boolean; idAt: Member }
  | { kind: "request"; id: RpcId; method: string; sessionId: string | undefined; idAt: Member }
  /** `eventType` is the type of a session event or of a lifecycle notification. */
  | { kind: "notification"; method: string; sessionId: string | undefined; eventType: string | undefined };

/**
 * How most of the runtime's frames begin, and a pattern for the two names that follow. The pattern accepts only names
 * in printable ASCII without escapes, so that their bytes can be used as they are. The rest of such a frame need not be
 * read.
 */
const EVENT = Buffer.from('{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"');
const EVENT_NAMES = /^([\x20\x21\x23-\x5b\x5d-\x7e]*)","event":\{"type":"([\x20\x21\x23-\x5b\x5d-\x7e]*)"/;
/**
 * How a lifecycle notification begins. On a server with several users, most frames are such notifications, because
 * every client gets the lifecycle events of every session.
 */
const LIFECYCLE = Buffer.from('{"jsonrpc":"2.0","method":"session.lifecycle","params":{"type":"');
const LIFECYCLE_NAMES = /^([\x20\x21\x23-\x5b\x5d-\x7e]*)","sessionId":"([\x20\x21\x23-\x5b\x5d-\x7e]*)"/;
/** The offset of the first byte in which the two beginnings differ. */
const DIFFERS_AT = EVENT.findIndex((byte, at) => byte !== LIFECYCLE[at]);
const LONGEST_NAME = 200;
const MAX_ID_LENGTH = 256;

/**
 * Reads the parts that the front door needs. Null if the body is not a JSON-RPC message, or if {@link isId} rejects its
 * id. Throws `ProtocolError` for a body that it recognizes as invalid JSON.
 */
export function readServerFrame(body: Buffer): ServerMessage | null {
  // JSON writers do not write a key twice, so the beginning is enough to identify the message.
  if (body[DIFFERS_AT] === EVENT[DIFFERS_AT]) {
    const names = readNames(body, EVENT, EVENT_NAMES);
    if (names !== null) {
      return { kind: "notification", method: "session.event", sessionId: names[1], eventType: names[2] };
    }
  } else if (body[DIFFERS_AT] === LIFECYCLE[DIFFERS_AT]) {
    const names = readNames(body, LIFECYCLE, LIFECYCLE_NAMES);
    if (names !== null) {
      return { kind: "notification", method: "session.lifecycle", sessionId: names[2], eventType: names[1] };
    }
  }
  return readAny(body);
}

/** Null if the body differs from the pattern, or a name has escapes. */
function readNames(body: Buffer, beginning: Buffer, names: RegExp): RegExpExecArray | null {
  if (body.length < beginning.length || beginning.compare(body, 0, beginning.length) !== 0) return null;
  return names.exec(body.toString("latin1", beginning.length, beginning.length + 2 * LONGEST_NAME));
}

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

export function isId(value: unknown): value is RpcId {
  return typeof value === "string" ? value.length <= MAX_ID_LENGTH : Number.isSafeInteger(value);
}

function readId(body: Buffer, { start, end }: Member): RpcId | undefined {
  const value = parse(body, start, end);
  return isId(value) ? value : undefined;
}

export function parse(body: Buffer, start = 0, end = body.length): unknown {
  try {
    return JSON.parse(body.toString("utf8", start, end));
  } catch {
    // The parser's own message would quote the content.
    throw new ProtocolError("A frame is not JSON.", PARSE_ERROR);
  }
}
